//! Tests the smaller forms of vectors: `output_dtype`, raw bytes, and the files of `embed`.

use layer0::OutputDtype;
use serde_json::{Value, json};

use crate::common::{TestApp, agent, checkpoint};
use crate::process::command;

const TEXTS: [&str; 3] = ["hello world", "a second text", ""];

/// Returns the status, the headers and the body of a response that may not be JSON.
fn raw(app: &TestApp, accept: &str, body: &Value) -> (u16, ureq::http::HeaderMap, Vec<u8>) {
    let request = agent().post(app.url("/v1/embeddings")).header("content-type", "application/json");
    let mut response = request.header("accept", accept).send(body.to_string()).unwrap();
    let bytes = response.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap();
    (response.status().as_u16(), response.headers().clone(), bytes)
}

fn integers(dtype: OutputDtype, vector: &[f32]) -> Vec<i64> {
    let bytes = dtype.convert(vector);
    bytes.iter().map(|&b| if dtype.is_signed_byte() { i64::from(b.cast_signed()) } else { i64::from(b) }).collect()
}

#[test]
fn integers_are_made_of_the_floats_that_were_cut_to_the_dimensions() {
    let app = TestApp::start(|_| {});
    for dimensions in [16, 12] {
        let floats = app.vectors(&json!({"input": TEXTS, "dimensions": dimensions}));
        for dtype in [OutputDtype::Int8, OutputDtype::Uint8, OutputDtype::Binary, OutputDtype::Ubinary] {
            let request = |format: &str| {
                let name = dtype.name();
                json!({"input": TEXTS, "dimensions": dimensions, "output_dtype": name, "encoding_format": format})
            };
            let numbers = app.embed(&request("float"));
            let base64 = app.embed(&request("base64"));
            let (_, _, bytes) = raw(&app, "*/*", &request("bytes"));
            assert_eq!(bytes.len(), TEXTS.len() * dtype.bytes(dimensions));
            for (index, floats) in floats.iter().enumerate() {
                let found: Vec<i64> = serde_json::from_value(numbers.body["data"][index]["embedding"].clone()).unwrap();
                assert_eq!(found, integers(dtype, floats), "{dtype:?}");
                let text = base64.body["data"][index]["embedding"].as_str().unwrap();
                assert_eq!(base64_simd::STANDARD.decode_to_vec(text).unwrap(), dtype.convert(floats), "{dtype:?}");
                let row = bytes.chunks(dtype.bytes(dimensions)).nth(index).unwrap();
                assert_eq!(row, dtype.convert(floats), "{dtype:?}");
            }
        }
    }
}

#[test]
fn raw_bytes_have_their_shape_in_the_headers() {
    let app = TestApp::start(|_| {});
    for count in [1, 3000] {
        let body = json!({"input": vec!["hello world"; count.min(2048)], "dimensions": 10});
        let rows = count.min(2048);
        let answer = app.embed(&body);
        let (floats, tokens) = (answer.vectors(), answer.body["usage"]["prompt_tokens"].to_string());
        let mut asked = body.clone();
        asked["encoding_format"] = json!("bytes");
        for (accept, body) in [("*/*", &asked), ("application/octet-stream", &body), ("application/json", &asked)] {
            let (status, headers, bytes) = raw(&app, accept, body);
            assert_eq!(status, 200);
            assert_eq!(headers["content-type"], "application/octet-stream");
            assert_eq!(headers["embedding-shape"], format!("{rows},10").as_str());
            assert_eq!(headers["embedding-dtype"], "float32");
            assert_eq!(headers["embedding-prompt-tokens"], tokens.as_str());
            let numbers: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            assert_eq!(numbers, floats.concat(), "{accept}");
        }
    }
    let mut binary = json!({"input": "a", "dimensions": 10, "output_dtype": "binary", "encoding_format": "bytes"});
    let (_, headers, bytes) = raw(&app, "*/*", &binary);
    assert_eq!(
        (&headers["embedding-shape"], &headers["embedding-dtype"]),
        (&"1,2".parse().unwrap(), &"int8".parse().unwrap())
    );
    assert_eq!(bytes.len(), 2);
    binary["output_dtype"] = json!("ubinary");
    assert_eq!(raw(&app, "*/*", &binary).1["embedding-dtype"], "uint8");
}

#[test]
fn accept_asks_for_bytes_only_if_it_prefers_them_and_errors_stay_json() {
    let app = TestApp::start(|_| {});
    let body = json!({"input": "hello"});
    for (accept, media_type) in [
        ("application/octet-stream", "application/octet-stream"),
        ("application/octet-stream, application/json;q=0.5", "application/octet-stream"),
        ("application/json, application/octet-stream;q=0.5", "application/json"),
        ("application/octet-stream;q=0", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
    ] {
        let (status, headers, _) = raw(&app, accept, &body);
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, media_type), "{accept}");
    }
    // The field decides over the header.
    let (_, headers, _) = raw(&app, "application/octet-stream", &json!({"input": "a", "encoding_format": "float"}));
    assert_eq!(headers["content-type"], "application/json");
    let (status, headers, _) = raw(&app, "application/octet-stream", &json!({"input": "a", "model": "none"}));
    assert_eq!((status, headers["content-type"].to_str().unwrap()), (404, "application/json"));
}

#[test]
fn an_unknown_dtype_or_format_is_refused_by_name() {
    let app = TestApp::start(|_| {});
    for (field, value) in [
        ("output_dtype", json!("int4")),
        ("output_dtype", json!("INT8")),
        ("output_dtype", json!(8)),
        ("encoding_format", json!("raw")),
    ] {
        let answer = app.embed(&json!({"input": "a", field: value}));
        let (status, _, _, param, message) = answer.error();
        assert_eq!((status, param), (400, Some(field)), "{message}");
    }
    assert_eq!(app.embed(&json!({"input": "a", "output_dtype": null})).vectors()[0].len(), 16);
}

#[test]
fn embed_writes_the_integers_of_the_api() {
    let app = TestApp::start(|_| {});
    let floats = app.vectors(&json!({"input": TEXTS[..2], "dimensions": 12}));
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.txt");
    std::fs::write(&input, TEXTS[..2].join("\n")).unwrap();
    let (llama, input) = (checkpoint("llama"), input.to_str().unwrap());
    let embed = |dtype: OutputDtype, name: &str| {
        let out = dir.path().join(format!("{}-{name}", dtype.name()));
        let args = ["embed", input, "--model", llama.to_str().unwrap(), "--dimensions", "12", "--embedding-dtype"];
        let done = command(&args).args([dtype.name(), "--output", out.to_str().unwrap()]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        std::fs::read(out).unwrap()
    };
    for dtype in [OutputDtype::Int8, OutputDtype::Uint8, OutputDtype::Binary, OutputDtype::Ubinary] {
        let expected: Vec<u8> = floats.iter().flat_map(|vector| dtype.convert(vector)).collect();
        let (signed, columns) = (dtype.is_signed_byte(), dtype.columns(12));

        let npy = embed(dtype, "out.npy");
        assert!(npy.ends_with(&expected), "{dtype:?}");
        let header = String::from_utf8_lossy(&npy[10..npy.len() - expected.len()]).into_owned();
        assert!(header.contains(if signed { "'|i1'" } else { "'|u1'" }), "{header}");
        assert!(header.contains(&format!("(2, {columns})")), "{header}");

        let bytes = embed(dtype, "out.safetensors");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = tensors.tensor("embedding").unwrap();
        assert_eq!(tensor.data(), expected);
        assert_eq!(tensor.shape(), [2, columns]);
        assert_eq!(tensor.dtype(), if signed { safetensors::Dtype::I8 } else { safetensors::Dtype::U8 });

        let jsonl = embed(dtype, "out.jsonl");
        for (line, vector) in String::from_utf8(jsonl).unwrap().lines().zip(&floats) {
            let record: Value = serde_json::from_str(line).unwrap();
            assert_eq!(record["embedding"], json!(integers(dtype, vector)), "{dtype:?}");
        }
        let parquet = embed(dtype, "out.parquet");
        // The bytes of the vectors are not compressed. Integers of 8 bits take 4 bytes each in Parquet.
        let stored: Vec<u8> =
            floats.iter().flat_map(|v| integers(dtype, v)).flat_map(|x| (x as i32).to_le_bytes()).collect();
        assert!(parquet.windows(stored.len()).any(|window| window == stored), "{dtype:?}");
    }
}
