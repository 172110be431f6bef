//! The names that the tensors of layer 0 have in the repositories of all families.

/// The prefixes that precede a module's name in a plain language model.
const PLAIN: [&str; 6] = ["model.", "", "transformer.", "gpt_neox.", "backbone.", "ultrabert."];

/// The prefixes that precede a module's name in a model that holds a language model among others. `extract` removes
/// these prefixes.
const OUTER: [&str; 18] = [
    "language_model.model.",
    "model.language_model.",
    "model.language_model.model.",
    "language_model.backbone.",
    "text_model.",
    "text_model.ultrabert.",
    "model.text_model.",
    "language_model.",
    "thinker.model.",
    "thinker.model.language_model.",
    "thinker.language_model.model.",
    "llm.model.",
    "llm.",
    "language.model.",
    "model.llm.",
    "model.transformer.",
    "decoder.model.",
    "vlm.model.language_model.",
];

/// The prefixes that precede a module's name in an encoder or a decoder. These come last, because an encoder beside a
/// language model may be an audio encoder.
const ENCODER_DECODER: [&str; 3] = ["model.decoder.", "encoder.", "model.encoder."];

/// The modules of embedding tables. Only whole names match: `embed_tokens_per_layer` and similar modules are not
/// embedding tables.
const EMBEDDINGS: [&str; 12] = [
    "embed_tokens",
    "wte",
    "embed_in",
    "word_embeddings",
    "tok_embeddings",
    "embeddings",
    "embedding.word_embeddings",
    "embeddings.tok_embeddings",
    "token_embd",
    "token_embeddings",
    "embed",
    "shared",
];

/// The modules of final norms.
const NORMS: [&str; 10] = [
    "norm",
    "final_layernorm",
    "final_layer_norm",
    "ln_f",
    "embedding_norm",
    "norm_f",
    "final_norm",
    "out_norm",
    "encoder.final_layernorm",
    "output_norm",
];

/// Returns the names that an embedding table can have, the most likely first.
pub fn embedding_names() -> Vec<String> {
    // Molmo keeps the rows of added tokens in a second tensor, `new_embedding`. Those tokens are left out of the mean.
    let split =
        ["model.transformer.wte.embedding", "transformer.wte.embedding", "model.wte.embedding", "wte.embedding"];
    names(&EMBEDDINGS).into_iter().chain(split.map(str::to_owned)).collect()
}

/// Returns the names that a final norm's weight can have, the most likely first.
pub fn norm_names() -> Vec<String> {
    names(&NORMS)
}

/// Returns the names that the weight of the output layer can have, the most likely first.
pub fn head_names() -> Vec<String> {
    names(&["lm_head", "embed_out", "output", "output_layer"])
}

/// Returns the names that the weights of `modules` can have, the most likely first.
pub fn names(modules: &[&str]) -> Vec<String> {
    let prefixes = || PLAIN.iter().chain(&OUTER).chain(&ENCODER_DECODER);
    modules.iter().flat_map(|module| prefixes().map(move |prefix| format!("{prefix}{module}.weight"))).collect()
}

/// Returns the name under which transformers looks for the tensor if the checkpoint holds the language model alone.
pub fn without_outer(name: &str) -> String {
    let longest = OUTER.iter().filter_map(|prefix| name.strip_prefix(prefix)).min_by_key(|rest| rest.len());
    longest.map_or_else(|| name.to_owned(), |rest| format!("model.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_outer_models_go_and_others_stay() {
        for (from, to) in [
            ("language_model.model.embed_tokens.weight", "model.embed_tokens.weight"),
            ("model.language_model.norm.weight", "model.norm.weight"),
            ("language_model.norm.weight", "model.norm.weight"),
            ("model.embed_tokens.weight", "model.embed_tokens.weight"),
            ("transformer.wte.weight", "transformer.wte.weight"),
            ("embed_tokens.weight", "embed_tokens.weight"),
            ("llm.model.norm.weight", "model.norm.weight"),
            ("thinker.model.embed_tokens.weight", "model.embed_tokens.weight"),
            ("thinker.model.language_model.norm.weight", "model.norm.weight"),
            ("language.model.embed_tokens.weight", "model.embed_tokens.weight"),
            ("model.encoder.norm.weight", "model.encoder.norm.weight"),
        ] {
            assert_eq!(without_outer(from), to);
        }
    }
}
