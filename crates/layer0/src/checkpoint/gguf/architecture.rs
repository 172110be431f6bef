//! What the value of `general.architecture` determines about layer 0: the norms, their tensors, and the factor of the
//! embeddings.
//!
//! Two parts of llama.cpp decide this, and both were read for each architecture in the version that llama-cpp-python
//! 0.3.36 bundles. The converter (`conversion/*.py`) decides what is in the file: it adds the 1 of `1 + w` to norms,
//! and multiplies the tables of Falcon-H1 and Jais. The compute graph (`src/models/*.cpp`) decides what remains to be
//! done at run time: Gemma's `sqrt(hidden)` and the 12 of MiniCPM 3 are constants of the graph and not keys of the
//! file. `tests/real/architectures.py` compares the lists with the newest release of the `gguf` package.

use crate::norm::NormKind;

/// The tensor of the final norm in most architectures.
const OUTPUT_NORM: &str = "output_norm.weight";

/// How an architecture computes layer 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Architecture {
    /// The model type from which most files of this architecture are converted, as transformers or the model's own code
    /// names it.
    pub model_type: &'static str,
    pub norm: FinalNormKind,
    /// The tensor of the final norm's weight, or `None` if the norm has no weight.
    pub norm_tensor: Option<&'static str>,
    pub embedding_norm: Option<EmbeddingNorm>,
    pub scale: Scale,
    /// A tensor of position embeddings. If a file has it, layer 0 depends on positions.
    pub positions: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FinalNormKind {
    Is(NormKind),
    /// The kind whose eps key the file has.
    ByEps,
}

/// A norm between the table and the first layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EmbeddingNorm {
    /// A LayerNorm with the name of the tensor that is its weight.
    Layer(&'static str),
    /// An RMSNorm without a weight.
    BareRms,
}

/// The factor by which llama.cpp's graph multiplies the embeddings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    One,
    /// The square root of the table's dimensions.
    SqrtHidden,
    /// The key `ARCHITECTURE.embedding_scale`, with this default if the file does not have the key.
    Key(f64),
}

/// Whether an architecture can be served.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Known {
    Served(Architecture),
    /// The architecture cannot be served. The reason is a sentence whose subject is "it".
    Refused(&'static str),
}

const RMS: Architecture = Architecture {
    model_type: "",
    norm: FinalNormKind::Is(NormKind::Rms),
    norm_tensor: Some(OUTPUT_NORM),
    embedding_norm: None,
    scale: Scale::One,
    positions: None,
};
/// What is assumed about an architecture in neither list once the user has named its norm.
pub const UNKNOWN: Architecture = RMS;
const LAYER: Architecture = Architecture { norm: FinalNormKind::Is(NormKind::Layer), ..RMS };
const TOKEN_EMBD_NORM: Option<EmbeddingNorm> = Some(EmbeddingNorm::Layer("token_embd_norm.weight"));

/// Every architecture that can be served, with the model type that it corresponds to.
#[rustfmt::skip]
const SERVED: &[(Architecture, &[(&str, &str)])] = &[
    (RMS, &[
        ("apertus", "apertus"), ("arcee", "arcee"), ("arctic", "arctic"), ("arwkv7", "rwkv_hybrid"),
        ("baichuan", "baichuan"), ("bailingmoe", "bailing_moe"), ("bailingmoe2", "bailing_moe_v2"),
        ("bailingmoe3", "bailing_hybrid"), ("bitnet", "bitnet"), ("chameleon", "chameleon"), ("chatglm", "chatglm"),
        ("cogvlm", "cogvlm"), ("deci", "nemotron-nas"), ("deepseek", "deepseek"), ("deepseek2", "deepseek_v3"),
        ("deepseek2-ocr", "deepseek_v2"), ("deepseek32", "deepseek_v32"), ("dots1", "dots1"),
        ("dots3note", "dots3_note_text"), ("dream", "Dream"), ("ernie4_5", "ernie4_5"), ("ernie4_5-moe", "ernie4_5_moe"),
        ("eurobert", "eurobert"), ("exaone", "exaone"), ("exaone-moe", "exaone_moe"), ("exaone4", "exaone4"),
        ("glm-dsa", "glm_moe_dsa"), ("glm4", "glm4"), ("glm4moe", "glm4_moe"), ("gpt-oss", "gpt_oss"),
        ("grovemoe", "grove_moe"), ("hunyuan-dense", "hunyuan_v1_dense"), ("hunyuan-moe", "hunyuan_v1_moe"),
        ("hunyuan_vl", "hunyuan_vl_text"), ("hy_v3", "hy_v3"), ("internlm2", "internlm2"), ("jamba", "jamba"),
        ("kimi-linear", "kimi_linear"), ("laguna", "laguna"), ("llada", "llada"), ("llada-moe", "llada_moe"),
        ("llama", "llama"), ("llama-embed", "llama"), ("llama4", "llama4_text"), ("maincoder", "maincoder"),
        ("mamba", "mamba"), ("mamba2", "mamba2"), ("maple", "maple"), ("mellum", "mellum"), ("mimo2", "mimo_v2_flash"),
        ("minimax-01", "minimax"), ("minimax-m2", "minimax_m2"), ("minimax-m3", "minimax_m3_vl_text"),
        ("mistral3", "ministral3"), ("mistral4", "mistral4"), ("nemotron_h", "nemotron_h"),
        ("nemotron_h_moe", "nemotron_h"), ("olmo2", "olmo2"), ("olmoe", "olmoe"), ("openelm", "openelm"),
        ("paddleocr", "paddleocr_vl_text"), ("pangu-embedded", "PanguEmbedded"), ("phi3", "phi3"), ("plamo", "plamo"),
        ("plamo2", "plamo2"), ("plamo3", "plamo3"), ("plm", "plm"), ("qwen", "qwen"), ("qwen2", "qwen2"),
        ("qwen2moe", "qwen2_moe"), ("qwen2vl", "qwen2_vl_text"), ("qwen3", "qwen3"), ("qwen35", "qwen3_5_text"),
        ("qwen35moe", "qwen3_5_moe_text"), ("qwen3moe", "qwen3_moe"), ("qwen3next", "qwen3_next"),
        ("qwen3vl", "qwen3_vl_text"), ("qwen3vlmoe", "qwen3_vl_moe_text"), ("refact", "gpt_refact"), ("rnd1", "rnd1"),
        ("rwkv6qwen2", "rwkv6qwen2"), ("seed_oss", "seed_oss"), ("smallthinker", "smallthinker"), ("smollm3", "smollm3"),
        ("spark2_5", "spark2_5"), ("step35", "step3p5"), ("xverse", "xverse"),
        // Without layers, all streams of a token are copies of its row, and joining them gives a multiple of the row.
        // The norm cancels that factor, except for the influence of eps.
        ("deepseek4", "deepseek_v4"), ("glm5-next", "glm5_next_text"), ("hy_v4", "hy_v4"),
        // The converter multiplies the table by embedding_multiplier and writes no key.
        ("falcon-h1", "falcon_h1"),
    ]),
    (Architecture { scale: Scale::SqrtHidden, ..RMS }, &[
        ("afmoe", "afmoe"), ("gemma", "gemma"), ("gemma-embedding", "gemma3_text"), ("gemma2", "gemma2"),
        ("gemma3", "gemma3_text"), ("gemma3n", "gemma3n_text"), ("gemma4", "gemma4_text"),
    ]),
    // The converter omits the key if config.json has no embedding_multiplier, as in Bamba.
    (Architecture { scale: Scale::Key(1.0), ..RMS }, &[
        ("granite", "granite"), ("granite_swa", "granite_swa"), ("granitehybrid", "granitemoehybrid"),
        ("granitemoe", "granitemoe"),
    ]),
    // These scales are constants of the graph. Files older than the key do not have it, and files of MiniCPM 3 never
    // do.
    (Architecture { scale: Scale::Key(12.0), ..RMS }, &[("minicpm", "minicpm"), ("minicpm3", "minicpm3")]),
    (Architecture { scale: Scale::Key(78.383_671_769_061_69), ..RMS }, &[("grok", "grok-1")]),
    // llama.cpp comments on this tensor with "fix for wrong tensor name": it is the final norm, and these models have
    // no norm on the embedding.
    (Architecture { norm_tensor: Some("token_embd_norm.weight"), ..RMS }, &[("lfm2", "lfm2"), ("lfm2moe", "lfm2_moe")]),
    // This tensor is the final norm of the encoder. T5's decoder has another one.
    (Architecture { norm_tensor: Some("enc.output_norm.weight"), ..RMS }, &[
        ("neo-bert", "neobert"), ("t5", "t5"), ("t5encoder", "t5"),
    ]),
    (Architecture { embedding_norm: Some(EmbeddingNorm::BareRms), ..RMS }, &[("muse-glimmer", "muse_glimmer_text")]),
    (Architecture { embedding_norm: Some(EmbeddingNorm::BareRms), norm_tensor: None, ..RMS }, &[("talkie", "talkie")]),
    (LAYER, &[
        ("codeshell", "codeshell"), ("cohere2", "cohere2"), ("command-r", "cohere"), ("dbrx", "dbrx"),
        ("falcon", "falcon"), ("gptneox", "gpt_neox"), ("jais2", "jais2"), ("nemotron", "nemotron"), ("orion", "orion"),
        // llama.cpp's graph applies an RMSNorm to phimoe. The model itself has a LayerNorm, whose eps it calls
        // rms_norm_eps.
        ("phi2", "phi"), ("phimoe", "phimoe"), ("stablelm", "stablelm"), ("starcoder2", "starcoder2"),
        // The converter multiplies the table by mup_embeddings_scale or embeddings_scale and writes no key.
        ("jais", "jais"),
    ]),
    (Architecture { positions: Some("position_embd.weight"), ..LAYER }, &[("mpt", "mpt")]),
    (Architecture { norm_tensor: None, ..LAYER }, &[("olmo", "olmo")]),
    (Architecture { embedding_norm: TOKEN_EMBD_NORM, ..LAYER }, &[
        ("bloom", "bloom"), ("modern-bert", "modernbert"), ("rwkv6", "rwkv6"), ("rwkv7", "rwkv7"),
    ]),
    (Architecture { norm: FinalNormKind::ByEps, ..RMS }, &[("cohere2moe", "cohere2_moe")]),
];

/// Architectures of llama.cpp whose layer 0 is not a norm over a token's row, with the reason.
#[rustfmt::skip]
const REFUSED: &[(&str, &[&str])] = &[
    ("it adds positions or segments to its embeddings", &[
        "bert", "gpt2", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "starcoder",
    ]),
    ("it keeps several streams of each token, and learned weights join them in place of a final norm", &["qwen4exp"]),
    ("learned weights mix the outputs of all layers before its final norm", &["kimi-k3"]),
    ("its layers run in rounds, with a norm after each, and no final norm follows them", &["hrm_text", "nanbeige"]),
    ("it replaces tokens by others before it embeds them", &["graniteswitch"]),
    ("it drafts tokens from the hidden states of another model", &["dflash", "eagle3", "gemma4-assistant"]),
    ("it is a model of images or sounds, not of text", &["clip", "pockettts", "qwen3tts", "wavtokenizer-dec"]),
    ("llama.cpp has its name, but neither converts nor runs its models", &["gptj"]),
];

/// Returns what is known of an architecture, or `None` if it is in neither list.
pub fn known(name: &str) -> Option<Known> {
    let served = SERVED.iter().find_map(|(architecture, names)| {
        let (_, model_type) = names.iter().find(|(known, _)| *known == name)?;
        Some(Known::Served(Architecture { model_type, ..*architecture }))
    });
    let refused = || {
        let (reason, _) = REFUSED.iter().find(|(_, names)| names.contains(&name))?;
        Some(Known::Refused(reason))
    };
    served.or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::family;

    fn served() -> impl Iterator<Item = (&'static str, Architecture)> {
        SERVED.iter().flat_map(|(architecture, names)| {
            names.iter().map(|&(name, model_type)| (name, Architecture { model_type, ..*architecture }))
        })
    }

    #[test]
    fn no_architecture_is_listed_twice() {
        let mut names: Vec<&str> =
            served().map(|(name, _)| name).chain(REFUSED.iter().flat_map(|(_, names)| names.iter().copied())).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    /// This list and the list of families agree about the same models, except for the 1 of `1 + w`, which the converter
    /// has already added.
    #[test]
    fn the_norm_is_that_of_the_family() {
        for (name, architecture) in served() {
            let Some(family) = family::known(architecture.model_type) else { continue };
            if let FinalNormKind::Is(kind) = architecture.norm {
                assert_eq!(kind, family.norm.without_plus_one(), "{name}");
            }
            assert_eq!(architecture.norm_tensor.is_none(), family.bare, "{name}");
            assert_eq!(architecture.embedding_norm.is_some(), family.embedding_norm.is_some(), "{name}");
        }
    }

    /// `tests/real/architectures.py` reads these tables of the documentation to know which architectures are supported.
    #[test]
    fn the_documentation_lists_every_architecture() {
        let text = include_str!("../../../../../docs/checkpoints.md");
        let start = text.find("### Architectures").unwrap();
        let section = &text[start..];
        let section = &section[..section[4..].find("\n##").unwrap() + 4];
        let mut listed: Vec<(String, String)> = Vec::new();
        for row in section.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            let names = cells[0].split(", ").map(|name| name.trim_matches('`').to_owned());
            listed.extend(names.map(|name| (name, cells[1].to_owned())));
        }
        for (reason, names) in REFUSED {
            for name in *names {
                assert!(listed.contains(&((*name).to_owned(), (*reason).to_owned())), "{name}: {reason}");
            }
        }
        for (name, architecture) in served() {
            let (_, norm) = listed.iter().find(|(listed, _)| listed == name).unwrap_or_else(|| panic!("{name}"));
            let kind = match architecture.norm {
                FinalNormKind::Is(NormKind::Rms) => "RMSNorm",
                FinalNormKind::Is(_) => "LayerNorm",
                FinalNormKind::ByEps => "by its eps",
            };
            assert!(norm.starts_with(kind), "{name}: {norm}");
        }
        for (name, _) in &listed {
            assert!(known(name).is_some(), "{name} is in docs/checkpoints.md alone");
        }
    }
}
