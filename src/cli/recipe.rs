//! Reads the part of mergekit's YAML that describes a layer-0 checkpoint: `mergekit-yaml FILE OUT` becomes `extract
//! FILE OUT`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::output::Failure;
use layer0::error::{Diagnostic, FileError};
use layer0::table::TableDtype;
use layer0_files as files;

/// The contents of a recipe.
#[derive(Debug, PartialEq, Eq)]
pub struct Recipe {
    /// A directory, which is relative to the working directory as in mergekit, or a Hub ID.
    pub model: String,
    /// The type of the output, or `None` for the type of the model.
    pub dtype: Option<TableDtype>,
}

const SUPPORTED: &str = "\
slices:
  - sources:
      - model: a directory or org/name
        layer_range: [0, 0]
merge_method: passthrough
dtype: bfloat16    # or float16, float32; may be left out";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    slices: Vec<Slice>,
    merge_method: String,
    dtype: Option<String>,
    /// mergekit's type of the output. It takes precedence over `dtype`.
    out_dtype: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slice {
    sources: Vec<Layers>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Layers {
    model: Value,
    layer_range: (u64, u64),
}

impl Recipe {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Fails if the file is not YAML, or if it asks for more than the embedding table and the norm of one model.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let text = files::read_to_string(path).map_err(|e| FileError::reading(path, &e))?;
        Self::parse(&text).map_err(|problem| {
            Failure::run(
                Diagnostic::new(path, format!("cannot be followed: {problem}"))
                    .expected(format!("a recipe of this form, and nothing else:\n{SUPPORTED}\n"))
                    .remedy("mergekit itself runs other recipes; `extract` then takes the directory that it writes"),
            )
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        if file.merge_method != "passthrough" {
            return Err(format!("merge_method is {:?}", file.merge_method));
        }
        let [slice] = file.slices.as_slice() else {
            return Err(format!("it has {} slices", file.slices.len()));
        };
        let [source] = slice.sources.as_slice() else {
            return Err(format!("its slice has {} sources", slice.sources.len()));
        };
        if source.layer_range != (0, 0) {
            let (from, to) = source.layer_range;
            return Err(format!(
                "layer_range [{from}, {to}] keeps layers: its end is exclusive, and no layer is [0, 0]"
            ));
        }
        let dtype = file.out_dtype.or(file.dtype).map(|name| dtype(&name)).transpose()?;
        Ok(Self { model: model(&source.model)?, dtype })
    }
}

/// Returns a path or ID, which mergekit also allows in the form of an object.
fn model(value: &Value) -> Result<String, String> {
    match value {
        Value::String(name) if name.contains('+') => Err(format!("{name:?} adds a LoRA")),
        Value::String(name) => Ok(name.clone()),
        Value::Object(map) => {
            let inner = map.get("model").unwrap_or(value);
            let text = |key: &str| inner.get(key).and_then(Value::as_str);
            let extra = map.keys().chain(inner.as_object().into_iter().flat_map(|inner| inner.keys()));
            match (text("path"), extra.filter(|key| !["model", "path", "revision"].contains(&key.as_str())).count()) {
                (Some(path), 0) => Ok(text("revision").map_or_else(|| path.to_owned(), |r| format!("{path}@{r}"))),
                _ => Err(format!("model is {value}")),
            }
        }
        other => Err(format!("model is {other}")),
    }
}

fn dtype(name: &str) -> Result<TableDtype, String> {
    match name.strip_prefix("torch.").unwrap_or(name) {
        "bfloat16" => Ok(TableDtype::Bf16),
        "float16" => Ok(TableDtype::F16),
        "float32" => Ok(TableDtype::F32),
        other => Err(format!("dtype is {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(model: &str, rest: &str) -> String {
        format!(
            "slices:\n  - sources:\n      - model: {model}\n        layer_range: [0, 0]\nmerge_method: passthrough\n{rest}"
        )
    }

    #[test]
    fn the_documented_forms_are_followed() {
        let one = |model: &str, dtype| Ok(Recipe { model: model.into(), dtype });
        assert_eq!(Recipe::parse(&recipe("./m", "")), one("./m", None));
        assert_eq!(
            Recipe::parse(&recipe("org/name@v1", "dtype: bfloat16")),
            one("org/name@v1", Some(TableDtype::Bf16))
        );
        assert_eq!(Recipe::parse(&recipe("m", "dtype: float32\nout_dtype: float16")), one("m", Some(TableDtype::F16)));
        assert_eq!(Recipe::parse(&recipe("m", "dtype: torch.float32 # c")), one("m", Some(TableDtype::F32)));
        let spelled = "{model: {path: org/name, revision: abc}}";
        assert_eq!(Recipe::parse(&recipe(spelled, "")), one("org/name@abc", None));
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for (text, part) in [
            (recipe("m", "").replace("[0, 0]", "[0, 1]"), "[0, 1]"),
            (recipe("m", "").replace("passthrough", "slerp"), "slerp"),
            (recipe("m", "dtype: int8"), "int8"),
            (recipe("m", "tokenizer_source: union"), "tokenizer_source"),
            (recipe("m+lora", ""), "LoRA"),
            (recipe("{model: {path: m}, lora: {path: l}}", ""), "lora"),
            (recipe("m", "").replace("        layer_range: [0, 0]\n", ""), "layer_range"),
            ("models:\n  - model: m\nmerge_method: linear\n".into(), "models"),
            ("modules: {}\nmerge_method: passthrough\n".into(), "modules"),
            ("merge_method: passthrough\nslices: []\n".into(), "0 slices"),
            ("".into(), ""),
            ("- a\n".into(), ""),
            ("a: [".into(), ""),
        ] {
            let error = Recipe::parse(&text).unwrap_err();
            assert!(error.contains(part), "{text}\n{error}");
        }
    }

    /// Aliases of aliases turn a few hundred bytes of text into gigabytes of nodes.
    #[test]
    fn a_billion_laughs_are_an_error() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
            text += &format!("a{i}: &a{i} [{aliases}]\n");
        }
        assert!(Recipe::parse(&(text + "slices: *a11\nmerge_method: passthrough\n")).is_err());
    }
}
