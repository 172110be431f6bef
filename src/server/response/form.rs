//! The forms in which the APIs of several systems return embeddings. Each form writes the beginning, the entries and the end of a body, piece by
//! piece, so that a long response never is in memory as a whole.

use std::sync::Arc;
use std::time::Instant;

use super::write;
use crate::decimal;
use crate::openai::{CohereType, EncodingFormat};
use layer0::OutputDtype;
use layer0::embedder::Input;

/// The form of a response with embeddings.
pub enum ResponseForm {
    /// `{"object": "list", "data": [...], ...}`, as OpenAI's API returns it.
    OpenAi { format: EncodingFormat, dtype: OutputDtype },
    /// The bytes of all vectors.
    Bytes { dtype: OutputDtype },
    /// `[[...], ...]`, as text-embeddings-inference returns it.
    Tei,
    /// `{"embeddings": [[...], ...], ...}` with durations since `started`, as Ollama returns it.
    Ollama { started: Instant },
    /// `{"embedding": [...]}`, as Ollama's older endpoint returns it.
    OllamaSingle,
    /// The vectors by their types, as Cohere returns them.
    Cohere(CohereForm),
}

/// The form of Cohere's responses: all vectors in one type after another, and the texts of the request.
pub struct CohereForm {
    /// The ID of the response.
    pub id: String,
    /// The version of the API, `1` or `2`.
    pub version: u8,
    pub texts: Arc<Vec<Input>>,
    /// The types of the vectors, or `None` for a plain list of floats, as version 1 returns it to requests without types.
    pub types: Option<Vec<CohereType>>,
}

/// One of the lists of a response, each of which has an entry for every input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Vectors, in the type with this index if the response has several.
    Vectors(usize),
    /// The texts of the request.
    Texts,
}

impl ResponseForm {
    /// Returns the lists of the response, in order.
    pub fn sections(&self) -> Vec<Section> {
        match self {
            Self::Cohere(form) => {
                // The vectors come first, because an error of the model can be reported only before the response begins.
                (0..form.lists()).map(Section::Vectors).chain([Section::Texts]).collect()
            }
            _ => vec![Section::Vectors(0)],
        }
    }

    /// Returns about how many bytes one vector takes in a section, at most.
    pub fn size_of_vector(&self, dimensions: usize) -> usize {
        match self {
            Self::OpenAi { format, dtype } => write::size_of_embedding(dimensions, *format, *dtype),
            Self::Bytes { dtype } => dtype.bytes(dimensions),
            Self::Tei | Self::Ollama { .. } | Self::OllamaSingle | Self::Cohere(_) => {
                write::size_of_embedding(dimensions, EncodingFormat::Float, OutputDtype::Float)
            }
        }
    }

    /// Appends what stands before the first entry of a section.
    pub fn begin(&self, section: Section, model: &str, out: &mut Vec<u8>) {
        match self {
            Self::OpenAi { .. } => out.extend_from_slice(write::HEAD),
            Self::Bytes { .. } => {}
            Self::Tei => out.push(b'['),
            Self::Ollama { .. } => {
                out.extend_from_slice(br#"{"model":"#);
                write::string(out, model);
                out.extend_from_slice(br#","embeddings":["#);
            }
            Self::OllamaSingle => out.extend_from_slice(br#"{"embedding":"#),
            Self::Cohere(form) => form.begin(section, out),
        }
    }

    /// Appends the vector of the input with this index.
    pub fn vector(&self, section: Section, index: usize, vector: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::OpenAi { format, dtype } => write::embedding(out, index, vector, *format, *dtype),
            Self::Bytes { dtype } => dtype.append(vector, out),
            Self::Tei | Self::Ollama { .. } | Self::OllamaSingle => {
                write::comma(out, index);
                decimal::vector(out, vector, OutputDtype::Float);
            }
            Self::Cohere(form) => {
                write::comma(out, index);
                match form.kind(section) {
                    CohereType::Base64 => {
                        out.push(b'"');
                        write::base64(out, vector, OutputDtype::Float);
                        out.push(b'"');
                    }
                    kind => decimal::vector(out, vector, kind.dtype()),
                }
            }
        }
    }

    /// Appends the text of the input with this index.
    pub fn text(&self, index: usize, out: &mut Vec<u8>) {
        let Self::Cohere(form) = self else { return };
        write::comma(out, index);
        let text = match form.texts.get(index) {
            Some(Input::Text(text)) => text.as_str(),
            _ => "",
        };
        write::string(out, text);
    }

    /// Appends what stands after the last entry of a section. `tokens` is the number of all tokens.
    pub fn end(&self, section: Section, model: &str, tokens: usize, out: &mut Vec<u8>) {
        match self {
            Self::OpenAi { .. } => write::tail(out, model, tokens),
            Self::Bytes { .. } => {}
            Self::Tei => out.push(b']'),
            Self::Ollama { started } => {
                let nanoseconds = started.elapsed().as_nanos();
                let end =
                    format!(r#"],"total_duration":{nanoseconds},"load_duration":0,"prompt_eval_count":{tokens}}}"#);
                out.extend_from_slice(end.as_bytes());
            }
            Self::OllamaSingle => out.push(b'}'),
            Self::Cohere(form) => form.end(section, tokens, out),
        }
    }
}

impl CohereForm {
    /// Returns the number of lists of vectors.
    fn lists(&self) -> usize {
        self.types.as_ref().map_or(1, Vec::len)
    }

    /// Returns the type of the vectors in a section.
    fn kind(&self, section: Section) -> CohereType {
        match (section, &self.types) {
            (Section::Vectors(index), Some(types)) => types.get(index).copied().unwrap_or(CohereType::Float),
            _ => CohereType::Float,
        }
    }

    fn begin(&self, section: Section, out: &mut Vec<u8>) {
        let index = match section {
            Section::Vectors(index) => index,
            Section::Texts => return out.extend_from_slice(br#","texts":["#),
        };
        if index == 0 {
            out.extend_from_slice(br#"{"id":"#);
            write::string(out, &self.id);
            out.extend_from_slice(br#","response_type":""#);
            let kind = if self.types.is_some() { "embeddings_by_type" } else { "embeddings_floats" };
            out.extend_from_slice(kind.as_bytes());
            out.extend_from_slice(br#"","embeddings":"#);
        }
        if self.types.is_some() {
            out.push(if index == 0 { b'{' } else { b',' });
            write::string(out, self.kind(section).name());
            out.push(b':');
        }
        out.push(b'[');
    }

    fn end(&self, section: Section, tokens: usize, out: &mut Vec<u8>) {
        out.push(b']');
        match section {
            Section::Vectors(index) if self.types.is_some() && index + 1 == self.lists() => out.push(b'}'),
            Section::Vectors(_) => {}
            Section::Texts => {
                let version = self.version;
                let meta = format!(
                    r#","meta":{{"api_version":{{"version":"{version}"}},"billed_units":{{"input_tokens":{tokens}}}}}}}"#
                );
                out.extend_from_slice(meta.as_bytes());
            }
        }
    }
}
