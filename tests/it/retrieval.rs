//! Scores of documents: the library's against numpy's (tests/fixtures/make_retrieval.py).

use std::path::{Path, PathBuf};

use embedding_server::builtin::{BUILTIN, open_checkpoint};
use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::{Embedder, Input, PooledTokens, Settings};
use layer0::pooling::place::DeviceChoice;
use layer0::retrieval::soft::MAX_QUERY_TOKENS;
use layer0::retrieval::{Method, TokenizedText, scores};
use layer0::yield_point::Undisturbed;
use serde::Deserialize;

use crate::common::{fixtures, settings};

#[derive(Deserialize)]
struct Golden {
    query: String,
    documents: Vec<String>,
    combined: Vec<f32>,
    soft: Vec<f32>,
    lexical: Vec<f32>,
    cosine: Vec<f32>,
}

fn builtin() -> Embedder {
    let checkpoint = open_checkpoint(Path::new(BUILTIN), &Overrides::default()).unwrap();
    Embedder::new(checkpoint, Settings::default()).unwrap()
}

fn tokens(embedder: &Embedder, text: &str) -> PooledTokens {
    embedder.tokens(0, &Input::Text(text.to_owned())).unwrap()
}

fn score(embedder: &Embedder, query: &str, documents: &[impl AsRef<str>], method: Method) -> Vec<f32> {
    let texts: Vec<&str> = [query].into_iter().chain(documents.iter().map(AsRef::as_ref)).collect();
    let tokens: Vec<_> = texts.iter().map(|text| tokens(embedder, text)).collect();
    let texts: Vec<_> = texts.iter().zip(&tokens).map(|(text, tokens)| TokenizedText { text, tokens }).collect();
    scores(embedder, texts[0], &texts[1..], method, &Undisturbed).unwrap()
}

#[test]
fn every_method_gives_numpys_scores() {
    let embedder = builtin();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/retrieval/golden.json");
    let golden: Vec<Golden> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(golden.len() >= 6);
    for case in golden {
        for (method, expected) in [
            (Method::Combined, &case.combined),
            (Method::Soft, &case.soft),
            (Method::Lexical, &case.lexical),
            (Method::Cosine, &case.cosine),
        ] {
            let found = score(&embedder, &case.query, &case.documents, method);
            assert_eq!(found.len(), expected.len());
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert!((found - expected).abs() < 2e-6, "{:?} {method:?} [{i}]: {found} {expected}", case.query);
            }
        }
    }
}

/// On a device, and for norms that add something to a row, the similarities follow from the tokens' vectors instead of from rows as they are
/// stored. The built-in model has rows of int4, and the fixtures have floats with an RMSNorm and with a LayerNorm.
#[test]
fn stored_rows_give_the_scores_of_the_vectors() {
    for (path, by_rows) in [(BUILTIN, true), ("llama", true), ("gemma", true), ("gpt-neox", false)] {
        let path = if path == BUILTIN { PathBuf::from(path) } else { fixtures("checkpoints").join(path) };
        // Devices support no other exponent of token counts than 1.
        let overrides = Overrides { token_count_exponent: Some(1.0), ..Overrides::default() };
        let checkpoint = || open_checkpoint(&path, &overrides).unwrap();
        let device = settings(|settings| {
            settings.device = DeviceChoice::CandleCpu;
            settings.device_min_tokens = Some(0);
        });
        let [stored, vectors] =
            [Settings::default(), device].map(|settings| Embedder::new(checkpoint(), settings).unwrap());
        let unit = vec![1.0; stored.table_dimensions()];
        assert_eq!(stored.comparison(&[7], &unit).unwrap().is_some(), by_rows, "{path:?}");
        assert!(vectors.comparison(&[7], &unit).unwrap().is_none());
        stored_rows_give_the_scores_of(&stored, &vectors);
    }
}

fn stored_rows_give_the_scores_of(stored: &Embedder, vectors: &Embedder) {
    let documents = [
        "Photosynthesis turns light into sugar.",
        "Pflanzen erzeugen ihre Nahrung aus Licht.",
        "植物通过光合作用制造食物。",
        "The market fell on Monday.",
        "",
    ];
    for query in ["How do plants make food?", "light", &"many different words for a long question ".repeat(9)] {
        for method in [Method::Combined, Method::Soft] {
            let (found, expected) =
                (score(stored, query, &documents, method), score(vectors, query, &documents, method));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5, "{query:?} {method:?}: {found} {expected}");
            }
        }
    }
}

#[test]
fn a_question_finds_its_answer_in_another_language_before_an_unrelated_document() {
    let embedder = builtin();
    let documents = ["Die Hauptstadt von Frankreich ist Paris.", "The dog barked at the postman."];
    for method in [Method::Combined, Method::Soft, Method::Cosine] {
        let scores = score(&embedder, "What is the capital of France?", &documents, method);
        assert!(scores[0] > 2.0 * scores[1], "{method:?} {scores:?}");
    }
}

#[test]
fn scores_stay_between_0_and_1_for_queries_of_every_length() {
    let embedder = builtin();
    let words: Vec<String> = (0..3 * MAX_QUERY_TOKENS).map(|i| format!("word{i} Wort мир 語")).collect();
    let long = words.join(" ");
    for query in ["", " ", "a", &long] {
        for method in Method::ALL {
            let scores = score(&embedder, query, &["", "a", &long, "unrelated"], method);
            assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "{method:?} {scores:?}");
            assert!(score(&embedder, query, &[] as &[&str], method).is_empty());
        }
    }
    let scores = score(&embedder, &long, &["unrelated", &long], Method::Combined);
    assert!(scores[1] > 0.5 && scores[0] < 0.1, "{scores:?}");
}

#[test]
fn tokens_of_the_template_do_not_match() {
    // Llama's template begins with <s>, which every text has.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/checkpoints/llama");
    let checkpoint = Checkpoint::open(Path::new(path), &Overrides::default()).unwrap();
    let embedder = Embedder::new(checkpoint, Settings::default()).unwrap();
    let tokens = tokens(&embedder, "a b");
    let ids = tokens.ids();
    assert_eq!(embedder.without_template(ids), &ids[1..]);
    assert!(embedder.without_template(&ids[..1]).is_empty());
    assert_eq!(embedder.without_template(&ids[1..]), &ids[1..]);
}
