//! The names of the tensors of layer 0, as the repositories of all families have them.

/// Where the modules of a language model can stand in a whole name: a plain causal model's come first, then those of
/// models that hold a language model among others, which `extract` leaves off.
const PLAIN: [&str; 8] =
    ["model.", "", "transformer.", "gpt_neox.", "backbone.", "model.decoder.", "encoder.", "model.encoder."];
const OUTER: [&str; 14] = [
    "language_model.model.",
    "model.language_model.",
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

/// The modules of embedding tables. Whole names only: `embed_tokens_per_layer` and the like are not tables.
const EMBEDDINGS: [&str; 11] = [
    "embed_tokens",
    "wte",
    "embed_in",
    "word_embeddings",
    "tok_embeddings",
    "embeddings",
    "embedding.word_embeddings",
    "embeddings.tok_embeddings",
    "token_embd",
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

/// The names that an embedding table can have, likeliest first.
pub fn embedding_names() -> Vec<String> {
    // Molmo keeps the rows of added tokens apart, in `new_embedding`: those tokens are left out of the mean.
    let split = ["model.transformer.wte.embedding", "transformer.wte.embedding"];
    names(&EMBEDDINGS).into_iter().chain(split.map(str::to_owned)).collect()
}

/// The names that a final norm's weight can have, likeliest first.
pub fn norm_names() -> Vec<String> {
    names(&NORMS)
}

/// The names that the weight of the output layer can have, likeliest first.
pub fn head_names() -> Vec<String> {
    names(&["lm_head", "embed_out", "output", "output_layer"])
}

/// The names that the weights of `modules` can have, likeliest first.
pub fn names(modules: &[&str]) -> Vec<String> {
    let prefixes = || PLAIN.iter().chain(&OUTER);
    modules.iter().flat_map(|module| prefixes().map(move |prefix| format!("{prefix}{module}.weight"))).collect()
}

/// The name of a tensor once its model is a language model alone, as transformers looks for it then.
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
