//! The lists of model types: those that can be served, by family, and those that cannot, with the reason.
//!
//! A new model type goes into the list of its family, or into `config::OUTER` if it holds another model's language
//! model. The reference is transformers: `tests/real/families.py` compares these lists with its newest release, and
//! compares the vectors of a tiny checkpoint of each type with the output of the type's own class.

use super::{Eps, Family, InnerNorm, Mlx, NormKind, Scale};

const fn rms(eps: &'static [&'static str], default: f64) -> Family {
    Family {
        norm: NormKind::Rms,
        bare: false,
        embedding_norm: None,
        eps: Eps::Key(eps, default),
        scale: Scale::One,
        mlx: Mlx::AsStored,
    }
}

const fn layer(eps: &'static [&'static str], default: f64) -> Family {
    Family { norm: NormKind::Layer, ..rms(eps, default) }
}

const fn plus_one(mlx: Mlx, eps: &'static [&'static str], default: f64) -> Family {
    Family { norm: NormKind::RmsPlusOne, mlx, ..rms(eps, default) }
}

const fn scaled(scale: Scale, family: Family) -> Family {
    Family { scale, ..family }
}

const fn fixed_eps(eps: f64, family: Family) -> Family {
    Family { eps: Eps::Fixed(eps), ..family }
}

const fn normed(kind: NormKind, modules: &'static [&'static str], family: Family) -> Family {
    Family { embedding_norm: Some(InnerNorm { kind, modules }), ..family }
}

/// The key under which most families keep the eps of an RMSNorm.
const RMS: &[&str] = &["rms_norm_eps"];
const EPS: &[&str] = &["layer_norm_eps"];
const EPSILON: &[&str] = &["layer_norm_epsilon"];
const NORM_EPS: &[&str] = &["norm_eps"];

/// Every model type that can be served, by family. The defaults are those of the configuration classes.
#[rustfmt::skip]
pub const FAMILIES: &[(Family, &[&str])] = &[
    (rms(RMS, 1e-6), &[
        "Dream", "aria_text", "axk1", "axk2", "baichuan", "baichuan_m1", "bailing_hybrid", "bailing_moe",
        "bailing_moe_linear", "bailing_moe_v2", "beam", "cogvlm", "deepseek", "deepseek_ocr2_text", "deepseek_v2",
        "deepseek_v3", "deepseek_v32", "deepseek_v4", "doge", "dots1", "flex_olmo", "flint", "grove_moe", "hunyuan",
        "idefics", "internlm", "internlm2", "jamba", "jetmoe", "kimi_k2", "kolibri1", "laguna", "lara_mini", "llama",
        "maincoder", "maple", "mellum", "mimo", "minimax_m2", "ministral", "mistral", "mistral4", "nemotron-nas",
        "olmo_hybrid", "openelm", "plamo", "plm", "qwen2", "qwen2_5_omni_text", "qwen2_moe", "qwen3", "qwen3_moe",
        "qwen3_omni_moe_text", "qwen3_vl_moe_text", "qwen3_vl_text", "rnd1", "sarvam_mla", "sarvam_moe", "seed_oss",
        "smallthinker", "smollm3", "spark2_5", "ultrabert", "unlimited_ocr_text", "voxtral_realtime_text", "xverse",
        "youtu",
    ]),
    (rms(RMS, 1e-5), &[
        "PanguEmbedded", "afm7", "afmoe", "apertus", "apertus1p5_text", "arcee", "arctic", "bamba", "bitnet",
        "chameleon", "cosmos3_edge_text", "cwm", "diffllama", "dots3_note_text", "emu3_text_model", "ernie4_5",
        "ernie4_5_moe", "ernie4_5_vl_moe_text", "eurobert", "evolla", "exaone4", "exaone_moe", "glm4_moe",
        "glm4_moe_lite", "glm4v_moe_text", "glm4v_text", "glm5_next_text", "glm_image_text", "glm_moe_dsa",
        "glm_ocr_text", "gpt_oss", "higgs_audio_v2", "hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl_text", "hy_v3",
        "hy_v4", "hy_v4_vl_text", "internlm3", "iquestcoder", "kimi_linear", "llada", "llada_moe", "llama4_text",
        "longcat_flash", "mimo_v2_flash", "minimax", "minimax_m1", "minimax_text_01", "ministral3",
        "mistral_large4_text", "mixtral", "mllama_text_model", "olmo2", "olmo3", "olmoe", "openai_privacy_filter",
        "paddleocr_vl_text", "phi3", "phi3_v", "phi4_multimodal", "phi4mm", "qwen2_5_vl_text", "qwen2_vl_text",
        "solar_open", "telechat3", "zamba", "zamba2",
    ]),
    (rms(RMS, 1.5625e-7), &["glm", "glm4"]),
    (rms(RMS, 1e-8), &["helium", "moshi"]),
    // The keys after the first one are other names that the configuration class accepts.
    (rms(&["rms_norm_eps", "layer_norm_epsilon"], 1e-5), &["exaone"]),
    (rms(&["rms_norm_eps", "layer_norm_eps"], 1e-6), &["molmo2_text"]),
    (rms(EPSILON, 1e-5), &["falcon_mamba", "gpt_refact", "mamba", "mamba2", "nemotron_h"]),
    (rms(&["layernorm_epsilon"], 1e-5), &["chatglm"]),
    (rms(EPSILON, 1e-6), &["longt5", "mt5", "qwen", "switch_transformers", "t5", "umt5"]),
    (rms(NORM_EPS, 1e-5), &["lfm2", "lfm2_moe"]),
    (rms(&["norm_eps", "rms_norm_eps"], 1e-5), &["lfm3"]),
    (rms(NORM_EPS, 1e-6), &["xlstm"]),
    (scaled(Scale::Key(&["embedding_multiplier"], 1.0), rms(RMS, 1e-6)), &[
        "granite", "granite4_vision_text", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hyperclovax",
    ]),
    (scaled(Scale::Key(&["embedding_multiplier"], 1.0), rms(RMS, 1e-5)), &["falcon_h1", "granite_swa"]),
    (scaled(Scale::Key(&["embedding_multiplier"], 12.0), rms(RMS, 1e-5)), &["granite_docling_text"]),
    (scaled(Scale::Key(&["scale_emb"], 1.0), rms(RMS, 1e-6)), &["minicpm", "minicpmo", "minicpmv"]),
    (scaled(Scale::Key(&["scale_emb"], 12.0), rms(RMS, 1e-5)), &["minicpm3"]),
    (scaled(Scale::Key(&["embedding_multiplier_scale"], 78.383_671_769_061_69), rms(RMS, 1e-5)), &["grok-1"]),
    // From Gemma 3n on, the weight is no longer stored as `1 + w`. The AltUp streams that Gemma 3n computes between the
    // embedding and the norm are left out here.
    (scaled(Scale::SqrtHidden, rms(RMS, 1e-6)), &[
        "diffusion_gemma_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text",
    ]),
    (scaled(Scale::SqrtHidden, plus_one(Mlx::AsStored, RMS, 1e-6)), &["gear", "gemma", "gemma2", "gemma3_text", "recurrent_gemma"]),
    (scaled(Scale::SqrtHidden, plus_one(Mlx::Unknown, RMS, 1e-6)), &["t5_gemma_module", "t5gemma2_text", "vaultgemma"]),
    (plus_one(Mlx::AsStored, RMS, 1e-6), &["minimax_m3_vl_text", "plamo2", "plamo3"]),
    (plus_one(Mlx::OneAdded, RMS, 1e-6), &["qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"]),
    (plus_one(Mlx::OneAdded, RMS, 1e-5), &["step3p5"]),
    (layer(EPS, 1e-5), &[
        "cohere", "cohere2", "cohere2_moe", "cohere_compass_text", "gpt_neox", "gpt_neox_japanese", "jais2", "persimmon",
        "phi", "stablelm",
    ]),
    (layer(EPSILON, 1e-5), &["RefinedWeb", "RefinedWebModel", "codegen", "codeshell", "falcon", "gptj", "mpt"]),
    (layer(&["norm_epsilon"], 1e-5), &["starcoder2"]),
    (layer(RMS, 1e-5), &["orion", "phimoe"]),
    (scaled(Scale::Key(&["embeddings_scale", "mup_embeddings_scale"], 1.0), layer(EPSILON, 1e-5)), &["jais"]),
    (scaled(Scale::Key(&["mup_embedding_multiplier"], 10.0), layer(EPSILON, 1e-5)), &["phi3small"]),
    (fixed_eps(1e-5, layer(&[], 0.0)), &["dbrx"]),
    (Family { bare: true, ..fixed_eps(1e-5, layer(&[], 0.0)) }, &["olmo"]),
    (Family { norm: NormKind::LayerPlusOne, ..layer(NORM_EPS, 1e-5) }, &["nemotron"]),
    (normed(NormKind::Layer, &["word_embeddings_layernorm"], layer(EPSILON, 1e-5)), &["bloom"]),
    (normed(NormKind::Layer, &["embeddings.norm"], layer(NORM_EPS, 1e-5)), &["modernbert", "modernbert-decoder"]),
    (normed(NormKind::Rms, &["embed_tokens.embed_norm", "embed_norm"], rms(RMS, 1e-6)), &[
        "inkling2_loop_text", "inkling2_text", "inkling_text",
    ]),
    (normed(NormKind::Rms, &[], rms(RMS, 1e-5)), &["muse_glimmer_text", "muse_spark_text"]),
    (Family { bare: true, ..normed(NormKind::Rms, &[], rms(RMS, 1e-6)) }, &["nanochat"]),
];

/// Model types that belong to another family if their config.json has a certain key that is neither null nor false.
pub const VARIANTS: &[(&str, &str, Family)] = &[
    ("afmoe", "mup_enabled", scaled(Scale::SqrtHidden, rms(RMS, 1e-5))),
    ("cohere2_moe", "rms_norm_eps", rms(RMS, 1e-5)),
];

/// Model types that cannot be served, with the reason. In messages, the reason follows "model_type NAME, ".
#[rustfmt::skip]
pub const REFUSED: &[(&str, &[&str])] = &[
    ("whose embeddings depend on positions or segments", &[
        "aimv2_text_model", "albert", "align_text_model", "altclip_text_model", "bart", "bert", "bert-generation",
        "big_bird", "bigbird_pegasus", "biogpt", "blenderbot", "blenderbot-small", "blip_text_model",
        "bridgetower_text_model", "bros", "camembert", "canary_decoder", "canine", "chinese_clip_text_model",
        "clap_text_model", "clip_text_model", "clipseg_text_model", "cohere_asr", "convbert", "cpmant", "ctrl",
        "data2vec-text", "deberta", "deberta-v2", "decision_transformer", "distilbert", "dpr", "electra", "ernie", "esm",
        "flaubert", "flava_text_model", "fnet", "fsmt", "funnel", "git", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo",
        "groupvit_text_model", "gte", "ibert", "imagegpt", "jina_embeddings_v3", "kosmos_2_5_text_model",
        "kosmos_2_text_model", "layoutlm", "layoutlmv2", "layoutlmv3", "layoutxlm", "led", "lilt", "longformer", "luke",
        "lxmert", "m2m_100", "marian", "markuplm", "mbart", "megatron-bert", "metaclip_2_text_model", "mobilebert",
        "mpnet", "mra", "mvp", "nllb-moe", "nomic_bert", "nystromformer", "openai-gpt", "opt", "owlv2_text_model",
        "owlvit_text_model", "pegasus", "pegasus_x", "perceiver", "plbart", "pp_formulanet_text", "prophetnet",
        "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "sam3_lite_text_text_model",
        "siglip2_text_model", "siglip_text_model", "speech_to_text", "splinter", "squeezebert", "tapas",
        "tipsv2_text_model", "trocr", "tvp", "videoprism_text_model", "vilt", "visual_bert", "whisper",
        "xclip_text_model", "xglm", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "yoso",
    ]),
    ("which adds a bias of its own to each embedding", &["zaya"]),
    ("which joins several streams by a learned mix in place of a final norm", &["qwen4_exp_text"]),
    ("which projects its states after the final norm", &["embedding_gemma2_text"]),
    ("whose layers run in cycles, each with a norm of its own", &["dory", "hrm_text", "iquestloopcoder", "nanbeige"]),
    ("whose norm on the embedding belongs to its first layer", &["rwkv", "rwkv7"]),
    ("which adds embeddings of several tokens in a row", &["longcat_flash_ngram"]),
    ("which joins the outputs of all layers by a learned mix before its final norm", &["kimi_k3"]),
    ("which adds embeddings of bytes, of audio codes or of boxes to those of tokens", &[
        "blt", "blt_local_decoder", "blt_local_encoder", "blt_patcher", "csm", "csm_depth_decoder_model", "dia",
        "dia_decoder", "dia_encoder", "kyutai_speech_to_text", "moshi_depth", "musicgen", "musicgen_decoder",
        "musicgen_melody", "musicgen_melody_decoder", "neomme", "udop",
    ]),
    ("which reads or writes speech, images or time series, and no text alone", &[
        "beit", "blip_2_qformer", "clvp_decoder", "clvp_encoder", "data2vec-audio", "deepseek_ocr2_encoder",
        "fastspeech2_conformer", "flava_image_codebook", "flava_image_model", "gemma3n_audio", "gemma3n_vision",
        "gemma4_assistant", "gemma4_unified_assistant", "gradium_phonon_tts", "granite_speech5_ctc",
        "granite_speech5_encoder", "hubert", "instructblip_qformer", "instructblipvideo_qformer", "lasr_ctc",
        "moonshine", "moonshine_streaming", "nemotron3_5_asr", "nemotron3_5_transcribe_word_timestamp",
        "nemotron_asr_streaming", "nougat", "omniasr_ctc", "ovis2_vision", "parakeet_ctc", "parakeet_rnnt",
        "parakeet_tdt", "pe_audio", "pe_audio_video", "pe_video", "pix2struct", "pix2struct_text_model",
        "pocket_tts", "pop2piano", "qwen2_5_omni_talker", "qwen3_omni_moe_talker_code_predictor",
        "qwen3_omni_moe_talker_text", "seamless_m4t", "seamless_m4t_v2", "sew", "sew-d", "speech-encoder-decoder",
        "speecht5", "t5gemma2_decoder", "unispeech", "unispeech-sat", "vision-encoder-decoder", "vits",
        "voxtral_encoder", "voxtral_realtime_encoder", "wav2vec2", "wav2vec2-bert", "wav2vec2-conformer", "wavlm",
    ]),
    ("whose tokens are no text", &["esmc"]),
];
