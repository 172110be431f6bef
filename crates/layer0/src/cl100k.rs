//! Decodes token IDs of OpenAI's encoding cl100k_base to text.
//!
//! Clients of OpenAI's API may send token IDs instead of text, and LangChain does so by default. They are IDs of cl100k_base, the
//! encoding of OpenAI's embedding models, whatever model the request names. Another model's vocabulary would turn them into
//! unrelated tokens, and nobody would notice. So they are decoded to text, and the text is tokenized by the model.

use std::sync::OnceLock;

/// The vocabulary as tiktoken ships it: one line `base64 rank` for each token, in the order of the ranks. See `assets/README.md`.
const VOCABULARY: &str = include_str!("../assets/cl100k_base.tiktoken");

/// The special tokens of cl100k_base. Source: `openai_public.py` in tiktoken.
const SPECIAL: [(u32, &str); 5] = [
    (100_257, "<|endoftext|>"),
    (100_258, "<|fim_prefix|>"),
    (100_259, "<|fim_middle|>"),
    (100_260, "<|fim_suffix|>"),
    (100_276, "<|endofprompt|>"),
];

/// The last ID of an ordinary token.
pub const LAST: u32 = 100_255;

struct Tokens {
    bytes: Vec<u8>,
    /// Token `i` is `bytes[starts[i]..starts[i + 1]]`.
    starts: Vec<u32>,
}

/// A token ID that cl100k_base does not have, and its position in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAToken {
    pub position: usize,
    pub id: u32,
}

/// Returns the number of bytes of text that `ids` stand for. It does not follow from the number of IDs: a token has up to 128
/// bytes.
pub fn bytes_of(ids: &[u32]) -> usize {
    let tokens = tokens();
    ids.iter().map(|&id| tokens.get(id).map_or(0, <[u8]>::len)).sum()
}

/// Returns the text of `ids`. Clients cut long texts between tokens, so a character may be incomplete; it becomes U+FFFD.
///
/// # Errors
/// Names the first ID that is not a token.
pub fn decode(ids: &[u32]) -> Result<String, NotAToken> {
    let tokens = tokens();
    let mut text = Vec::with_capacity(bytes_of(ids));
    for (position, &id) in ids.iter().enumerate() {
        text.extend_from_slice(tokens.get(id).ok_or(NotAToken { position, id })?);
    }
    Ok(String::from_utf8(text).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

fn tokens() -> &'static Tokens {
    static TOKENS: OnceLock<Tokens> = OnceLock::new();
    TOKENS.get_or_init(|| Tokens::parse(VOCABULARY))
}

impl Tokens {
    fn parse(vocabulary: &str) -> Self {
        let mut tokens = Self { bytes: Vec::with_capacity(vocabulary.len() / 2), starts: vec![0] };
        for line in vocabulary.lines() {
            let token = line.split(' ').next().unwrap_or_default();
            tokens.bytes.extend(base64(token));
            tokens.starts.push(u32::try_from(tokens.bytes.len()).unwrap_or(u32::MAX));
        }
        tokens
    }

    fn get(&self, id: u32) -> Option<&[u8]> {
        if let Some((_, special)) = SPECIAL.iter().find(|(special, _)| *special == id) {
            return Some(special.as_bytes());
        }
        let (start, end) = (*self.starts.get(id as usize)?, *self.starts.get(id as usize + 1)?);
        self.bytes.get(start as usize..end as usize)
    }
}

/// Decodes standard base64. The tests check that the asset is valid.
fn base64(text: &str) -> impl Iterator<Item = u8> {
    let mut buffer = 0u32;
    let mut bits = 0;
    text.bytes().filter_map(move |c| {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        buffer = buffer << 6 | u32::from(value);
        bits += 6;
        (bits >= 8).then(|| {
            bits -= 8;
            (buffer >> bits) as u8
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_token_is_the_last() {
        assert!(decode(&[LAST]).is_ok());
        assert_eq!(decode(&[LAST + 1]), Err(NotAToken { position: 0, id: LAST + 1 }));
    }

    // Captured from tiktoken 0.12 on the wire.
    #[test]
    fn ids_of_tiktoken_decode() {
        assert_eq!(decode(&[15339, 1917]).unwrap(), "hello world");
        assert_eq!(decode(&[9080, 22656, 91416]).unwrap(), "日本 😀");
        assert_eq!(decode(&[27, 91, 8862, 728, 428, 91, 29]).unwrap(), "<|endoftext|>");
        assert_eq!(decode(&[220]).unwrap(), " ");
        assert_eq!(decode(&[]).unwrap(), "");
    }

    #[test]
    fn the_vocabulary_is_whole() {
        let tokens = tokens();
        assert_eq!(tokens.starts.len(), 100_256 + 1);
        assert!((0..100_256).all(|id| tokens.get(id).is_some_and(|t| !t.is_empty())));
        assert_eq!(decode(&[100_255]).unwrap(), " Conveyor");
    }

    #[test]
    fn special_tokens_are_their_text_and_the_rest_is_refused() {
        assert_eq!(decode(&[100_257, 100_276]).unwrap(), "<|endoftext|><|endofprompt|>");
        for id in [100_256, 100_261, 100_275, 100_277, u32::MAX] {
            assert_eq!(decode(&[15339, id]), Err(NotAToken { position: 1, id }));
        }
    }

    #[test]
    fn ids_are_weighed_by_their_text() {
        for ids in [&[][..], &[15339, 1917], &[90_280], &[58_040; 3], &[100_257]] {
            assert_eq!(bytes_of(ids), decode(ids).unwrap().len());
        }
        assert_eq!((bytes_of(&[58_040]), bytes_of(&[100_256, u32::MAX])), (128, 0));
    }

    #[test]
    fn a_character_cut_between_tokens_is_replaced() {
        let cut = (0..100_256).find(|&id| std::str::from_utf8(tokens().get(id).unwrap()).is_err()).unwrap();
        assert!(decode(&[cut]).unwrap().contains('\u{fffd}'));
    }
}
