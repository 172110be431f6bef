//! The command `embedding-server inspect`.

use bytesize::ByteSize;

use super::InspectArgs;
use super::progress::Bar;
use crate::builtin::open_checkpoint;
use crate::config::ModelConfig;
use crate::config::layers::{Flags, effective};
use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::{Embedder, Input, Settings};
use layer0::location::Location;
use layer0::norm::{Norm, NormKind};
use layer0::progress::counted;

/// The text that `inspect` tokenizes to show special tokens and the treatment of spaces.
const SAMPLE: &str = "Hello, 세계!";

pub fn run(args: &InspectArgs) -> Result<String, Box<dyn std::error::Error>> {
    let model = configured(args)?;
    let (path, overrides, settings) = match &model {
        Some(model) => (model.path.as_path(), model.overrides(), model.settings()),
        None => (args.path.as_path(), Overrides::default(), Settings::default()),
    };
    let path = Location::of(path).directory(&overrides, &Bar::new())?;
    let checkpoint = open_checkpoint(&path, &overrides)?;
    let mut lines: Vec<(&str, String)> = Vec::new();
    let table = &checkpoint.table;
    lines.push(("path", checkpoint.path.display().to_string()));
    lines.push(("kind", checkpoint.kind.name().to_owned()));
    lines.push(("model type", checkpoint.model_type.clone()));
    lines.push(("table", format!("{} in {}", checkpoint.table_source.name, checkpoint.table_source.path.display())));
    lines.push(("rows", table.rows().to_string()));
    lines.push(("dimensions", table.dimensions().to_string()));
    lines.push(("dtype", dtype(&checkpoint)));
    if let Some(norm) = &checkpoint.norm.embedding_norm {
        lines.push(("embedding norm", describe(norm, None)));
    }
    lines.push(("final norm", describe(&checkpoint.norm.norm, checkpoint.norm_source.as_deref())));
    lines.push(("embedding scale", checkpoint.norm.embedding_scale.to_string()));
    lines.push(("memory", memory(&checkpoint)));
    let rebuilt = if checkpoint.tokenizer_path == checkpoint.path { "rebuilt from " } else { "" };
    let tokenizer = format!(
        "{rebuilt}{}, {}",
        checkpoint.tokenizer_path.display(),
        counted(checkpoint.tokenizer.vocabulary.size, "token")
    );
    lines.push(("tokenizer", tokenizer));
    let special: Vec<String> = checkpoint
        .tokenizer
        .vocabulary
        .added
        .iter()
        .filter(|t| t.special)
        .take(8)
        .map(|t| format!("{} {}", t.id, t.content))
        .collect();
    lines.push(("special tokens", if special.is_empty() { "none".to_owned() } else { special.join(", ") }));
    let pooled =
        if settings.special_tokens.unwrap_or(checkpoint.conventions.special_tokens) { "pooled" } else { "left out" };
    let length = if settings.normalize.unwrap_or(checkpoint.conventions.normalize) {
        "scaled to length 1"
    } else {
        "the plain mean"
    };
    lines.push(("vectors", format!("{length}; the template's special tokens are {pooled}")));
    let exponent = checkpoint.conventions.token_count_exponent;
    let counts = if exponent == 1.0 {
        "every occurrence of a token counts".to_owned()
    } else {
        format!("a token that occurs n times weighs n^{exponent}")
    };
    lines.push(("token counts", counts));
    let tail = match checkpoint.conventions.lexical_dimensions {
        0 => "none".to_owned(),
        columns => format!(
            "{} of {} times the length of the token's vector",
            counted(columns, "column"),
            checkpoint.conventions.lexical_weight
        ),
    };
    lines.push(("lexical tail", tail));
    lines.extend(checkpoint.prompt.iter().map(|prompt| ("prompt", format!("{prompt:?} is put before each text"))));
    lines.extend(checkpoint.remarks.iter().map(|remark| ("remark", remark.clone())));
    lines.extend(checkpoint.warnings.iter().map(|warning| ("warning", warning.clone())));

    let embedder = Embedder::new(checkpoint, settings)?;
    let sample = embedder.tokens(0, &Input::Text(SAMPLE.to_owned()))?;
    lines.push(("fingerprint", embedder.fingerprint().to_string()));
    lines.push(("tokenized by", embedder.tokenizer().to_owned()));
    lines.extend(embedder.choice().remark().map(|remark| ("remark", remark)));
    lines.push(("sample", format!("{SAMPLE:?} is {:?}", sample.ids())));
    lines.push(("finite", "every row".to_owned()));
    Ok(lines.into_iter().map(|(name, value)| format!("{name:<16} {value}\n")).collect())
}

fn configured(args: &InspectArgs) -> Result<Option<ModelConfig>, Box<dyn std::error::Error>> {
    let Some(file) = &args.config else { return Ok(None) };
    let config =
        effective(&Flags { config: Some(file.clone()), ..Flags::default() }, std::iter::empty::<(String, String)>())?
            .config;
    let found = config.models.into_iter().find(|m| m.path == args.path || args.path.to_str() == Some(m.id.as_str()));
    found.map(Some).ok_or_else(|| format!("{} has no model at {}", file.display(), args.path.display()).into())
}

fn dtype(checkpoint: &Checkpoint) -> String {
    let (stored, served) = (&checkpoint.table_source.dtype, checkpoint.table.dtype().name());
    if stored.eq_ignore_ascii_case(served) { served.to_owned() } else { format!("{stored}, decoded to {served}") }
}

fn memory(checkpoint: &Checkpoint) -> String {
    let table = &checkpoint.table;
    let bytes = ByteSize(table.bytes().len() as u64);
    let scalars = table.rows() * 4 * (1 + checkpoint.norm.scalars_per_row() + usize::from(table.mapping().is_some()));
    let held = match checkpoint.table_source.map {
        Some(_) => "mapped, of which the rows in use are resident",
        None => "decoded at load, all of it resident",
    };
    format!("{bytes} {held}; {} of scalars per row", ByteSize(scalars as u64))
}

fn describe(norm: &Norm, tensor: Option<&str>) -> String {
    let mut text = norm.kind.name().to_owned();
    if let Some(tensor) = tensor {
        text += &format!(", {tensor}");
    }
    if norm.bias.is_some() {
        text += " with bias";
    }
    if norm.kind == NormKind::None { text } else { format!("{text}, eps {:e}", norm.eps) }
}
