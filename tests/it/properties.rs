//! Tests properties that hold for any input.

use std::sync::OnceLock;

use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::{Embedder, Input, TokenInput};
use proptest::prelude::*;
use serde_json::json;

use crate::common::{TestApp, checkpoint, difference, length, same, settings};

fn embedder(name: &str, token_input: TokenInput) -> Embedder {
    let opened = Checkpoint::open(&checkpoint(name), &Overrides::default()).unwrap();
    Embedder::new(opened, settings(|settings| settings.token_input = token_input)).unwrap()
}

fn app() -> &'static TestApp {
    static APP: OnceLock<TestApp> = OnceLock::new();
    APP.get_or_init(|| TestApp::start(|_| {}))
}

/// Generates ordinary and unusual texts.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-zA-Z ,.]{0,80}",
        "\\PC{0,30}",
        "(<s>|</s>|<unk>|<bos>|\u{0}|\u{2581}|\u{feff}|\r\n| ){0,8}",
        (1..400usize, prop_oneof![Just('a'), Just(' '), Just('字'), Just('\u{1f600}')])
            .prop_map(|(n, c)| String::from(c).repeat(n)),
    ]
}

fn vector_of(embedder: &Embedder, input: &Input) -> Option<Vec<f32>> {
    let tokens = embedder.tokens(0, input).ok()?;
    let mut vector = vec![0.0; embedder.dimensions()];
    embedder.pool(&[tokens], embedder.dimensions(), &mut vector).unwrap();
    Some(vector)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_is_its_texts_one_by_one_in_order(texts in prop::collection::vec(text(), 1..12)) {
        let batch = app().vectors(&json!({"input": texts}));
        prop_assert_eq!(batch.len(), texts.len());
        for (text, vector) in texts.iter().zip(&batch) {
            let alone = &app().vectors(&json!({"input": text}))[0];
            prop_assert!(same(alone, vector), "{alone:?} {vector:?}");
        }
    }

    #[test]
    fn every_text_has_a_finite_vector_of_length_one_in_both_encodings(text in text()) {
        let floats = app().vectors(&json!({"input": text}));
        let base64 = app().vectors(&json!({"input": text, "encoding_format": "base64"}));
        prop_assert_eq!(&floats, &base64);
        prop_assert!(floats[0].iter().all(|x| x.is_finite()));
        prop_assert!((length(&floats[0]) - 1.0).abs() < 1e-5);
    }

    #[test]
    fn fewer_dimensions_are_the_prefix_renormalized(text in text(), k in 1usize..=16) {
        let whole = &app().vectors(&json!({"input": text}))[0];
        let prefix = &app().vectors(&json!({"input": text, "dimensions": k}))[0];
        let scale = length(&whole[..k]);
        prop_assume!(scale > 1e-3);
        let expected: Vec<f32> = whole[..k].iter().map(|x| (f64::from(*x) / scale) as f32).collect();
        prop_assert!(difference(prefix, &expected) < 1e-5);
    }

    #[test]
    fn any_ids_are_a_vector_or_a_400(ids in prop::collection::vec(any::<u32>().prop_map(|id| id >> (id % 32)), 0..50)) {
        let answer = app().embed(&json!({"input": [ids.clone()]}));
        let known = |id: &u32| *id < 100_256 || (100_257..=100_260).contains(id) || *id == 100_276;
        if ids.iter().all(known) {
            prop_assert_eq!(answer.status, 200);
            prop_assert!(answer.vectors()[0].iter().all(|x| x.is_finite()));
        } else {
            prop_assert_eq!(answer.error().0, 400);
        }
    }

    #[test]
    fn own_ids_have_a_vector_exactly_when_each_has_a_row(ids in prop::collection::vec(0u32..420, 0..50)) {
        static EMBEDDER: OnceLock<(Embedder, u32)> = OnceLock::new();
        let (embedder, rows) = EMBEDDER.get_or_init(|| {
            let rows = Checkpoint::open(&checkpoint("llama"), &Overrides::default()).unwrap().table.rows();
            (embedder("llama", TokenInput::Model), rows as u32)
        });
        let vector = vector_of(embedder, &Input::TokenIds(ids.clone()));
        prop_assert_eq!(vector.is_some(), ids.iter().all(|id| id < rows));
        if let Some(vector) = vector {
            prop_assert!((length(&vector) - 1.0).abs() < 1e-5);
            // The mean does not depend on the order of the tokens.
            let reversed: Vec<u32> = ids.into_iter().rev().collect();
            let other = vector_of(embedder, &Input::TokenIds(reversed)).unwrap();
            prop_assert!(difference(&vector, &other) < 1e-5);
        }
    }

    #[test]
    fn no_family_panics_or_answers_what_is_not_finite(text in text()) {
        static EMBEDDERS: OnceLock<Vec<Embedder>> = OnceLock::new();
        let all = EMBEDDERS.get_or_init(|| {
            ["gemma3-added-token", "qwen", "phi", "bloom", "olmo", "llama-truncating"]
                .map(|name| embedder(name, TokenInput::Cl100k)).into()
        });
        for embedder in all {
            let vector = vector_of(embedder, &Input::Text(text.clone())).unwrap();
            prop_assert!((length(&vector) - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn any_body_is_an_answer_in_json(body in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "\\{\"input\": ?(\\[|\\]|\"|1|-|,|a|\\{|null){0,12}\\}?".prop_map(String::into_bytes),
    ]) {
        let answer = app().post("/v1/embeddings", "application/json", &body);
        if answer.status != 200 {
            prop_assert_eq!(answer.error().0, 400);
        }
    }
}
