//! Writes the model card, which says where a layer-0 checkpoint comes from.

use std::fmt::Write;
use std::path::Path;
use std::time::SystemTime;

use super::tensors::Written;
use crate::table::TableDtype;
use layer0_files as files;

/// The source of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The Hub ID or the path of the model.
    pub name: String,
    /// The commit of a model from the Hub.
    pub commit: Option<String>,
    /// The URL of the model's page on the Hub.
    pub url: Option<String>,
    /// The entries `license`, `license_name` and `license_link` of the source's own card.
    pub license: Vec<(String, String)>,
    /// Whether the tensors were downloaded as byte ranges, for which the Hub states no digest.
    pub ranges: bool,
    /// Which tensors were decoded, and from which format.
    pub decoded: Option<String>,
}

impl Origin {
    /// Returns the origin of a directory on this machine. The license is read from its card if it has one.
    pub fn local(dir: &Path) -> Self {
        let name = dir.canonicalize().unwrap_or_else(|_| dir.to_owned()).display().to_string();
        Self { name, license: licenses(&dir.join("README.md")), ..Self::default() }
    }
}

/// Returns the entries about the license from a card's front matter, with their values exactly as written.
fn licenses(card: &Path) -> Vec<(String, String)> {
    let text = files::read_to_string(card).unwrap_or_default();
    let Some(front) = text.strip_prefix("---\n").and_then(|rest| rest.split("\n---").next()) else {
        return Vec::new();
    };
    let pairs = front.lines().filter_map(|line| line.split_once(": "));
    pairs
        .filter(|(key, _)| ["license", "license_name", "license_link"].contains(key))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Returns the text of README.md, with the front matter that the Hub reads.
pub fn text(origin: &Origin, written: &Written, dtype: Option<TableDtype>) -> String {
    let mut card = String::from("---\n");
    for (key, value) in &origin.license {
        let _ = writeln!(card, "{key}: {value}");
    }
    if origin.url.is_some() {
        let _ = writeln!(card, "base_model: {}", origin.name);
    }
    card.push_str("tags:\n- embeddings\n- layer-0\n---\n\n# Layer 0 of ");
    card.push_str(&origin.name);
    card.push_str("\n\nThe token embeddings and the final norm of a language model, without its layers.\n\n");
    let name = origin.url.as_deref().unwrap_or(&origin.name);
    let _ = writeln!(card, "* Source: {name}");
    if let Some(commit) = &origin.commit {
        let _ = writeln!(card, "* Commit: {commit}");
    }
    for tensor in written.tensors() {
        let renamed = if tensor.source == tensor.info.name {
            String::new()
        } else {
            format!(", there named `{}`", tensor.source)
        };
        let _ = writeln!(
            card,
            "* Tensor: `{}`, {:?} {:?}{renamed}",
            tensor.info.name, tensor.info.dtype, tensor.info.shape
        );
    }
    let _ = writeln!(card, "* sha256 of the table's bytes: {}", written.table_sha256());
    if let Some(decoded) = &origin.decoded {
        let _ = writeln!(card, "* Decoded: {decoded}.");
    }
    let _ = match dtype {
        None if origin.decoded.is_some() => Ok(()),
        None => writeln!(card, "* The tensors' bytes are the source's."),
        Some(dtype) => writeln!(card, "* The tensors were converted to {}, rounding to nearest.", dtype.name()),
    };
    if origin.ranges {
        let note = "* They came by byte ranges over HTTPS. The Hub states a digest for whole files alone, so their size \
                    was checked, and no digest.";
        let _ = writeln!(card, "{note}");
    }
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let day = now.split('T').next().unwrap_or_default();
    let _ = writeln!(card, "* Made by embedding-server {} on {day}.", env!("CARGO_PKG_VERSION"));
    card.push_str("\nThe licence and the model card of the source hold for these files too.\n");
    card
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_licence_is_read_from_the_front_matter_alone() {
        let dir = tempfile::tempdir().unwrap();
        let card = dir.path().join("README.md");
        std::fs::write(&card, "---\nlicense: gemma\nlicense_link: https://x.test/y\ntags: [a]\n---\nlicense: no\n")
            .unwrap();
        let pairs = [("license", "gemma"), ("license_link", "https://x.test/y")];
        assert_eq!(licenses(&card), pairs.map(|(k, v)| (k.to_owned(), v.to_owned())));
        std::fs::write(&card, "license: mit\n").unwrap();
        assert_eq!(licenses(&card), []);
        assert_eq!(licenses(&dir.path().join("none")), []);
    }
}
