//! Tests `fit --teacher-vectors`: the same vectors in files of every format.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use half::{bf16, f16};
use layer0::progress::Silent;
use layer0_tuning::fit::vectors::{VectorFile, Vectors};
use zip::write::SimpleFileOptions;

use crate::common::{difference, fixtures};

fn rows() -> Vec<Vec<f32>> {
    let mut file = VectorFile::open(&fixtures("fit").join("vectors.jsonl")).unwrap();
    file.of(&texts(60), &Silent).unwrap()
}

fn texts(count: usize) -> Vec<String> {
    vec!["text".to_owned(); count]
}

/// Reads all vectors of a file in three calls.
fn read(path: &Path) -> Vec<Vec<f32>> {
    let mut file = VectorFile::open(path).unwrap_or_else(|e| panic!("{e}"));
    let parts = [1, 36, 23].map(|count| file.of(&texts(count), &Silent).unwrap_or_else(|e| panic!("{e}")));
    file.finish().unwrap();
    parts.concat()
}

fn assert_equal(path: &Path, tolerance: f32) {
    let (found, expected) = (read(path), rows());
    assert_eq!(found.len(), expected.len());
    for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(difference(found, expected) <= tolerance, "{} in row {row}: {found:?}", path.display());
    }
}

type Bytes = fn(f32) -> Vec<u8>;

/// Returns the bytes of all numbers, row by row or column by column.
fn numbers(by_columns: bool, bytes: Bytes) -> Vec<u8> {
    let rows = rows();
    let in_order: Vec<f32> = if by_columns {
        (0..rows[0].len()).flat_map(|column| rows.iter().map(move |row| row[column])).collect()
    } else {
        rows.concat()
    };
    in_order.into_iter().flat_map(bytes).collect()
}

/// Returns an npy file as numpy writes it, in the given version of the format.
fn npy(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([version, 0]);
    let length = u32::try_from(header.len()).unwrap().to_le_bytes();
    bytes.extend(if version == 1 { &length[..2] } else { &length[..] });
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn file(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

#[test]
fn npy_is_read_in_either_order_and_byte_order() {
    let dir = tempfile::tempdir().unwrap();
    let types: [(&str, Bytes, f32); 6] = [
        ("<f2", |x| f16::from_f32(x).to_le_bytes().to_vec(), 2e-3),
        (">f2", |x| f16::from_f32(x).to_be_bytes().to_vec(), 2e-3),
        ("<f4", |x| x.to_le_bytes().to_vec(), 0.0),
        (">f4", |x| x.to_be_bytes().to_vec(), 0.0),
        ("<f8", |x| f64::from(x).to_le_bytes().to_vec(), 0.0),
        (">f8", |x| f64::from(x).to_be_bytes().to_vec(), 0.0),
    ];
    for (descr, bytes, tolerance) in types {
        for by_columns in [false, true] {
            for version in [1, 2, 3] {
                let order = if by_columns { "True" } else { "False" };
                let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': (60, 14), }}     \n");
                let content = npy(version, &header, &numbers(by_columns, bytes));
                assert_equal(&file(dir.path(), "v.NPY", &content), tolerance);
            }
        }
    }
    let python_2 = "{'descr': '<f4', 'fortran_order': False, 'shape': (60L, 14L)}\n";
    let content = npy(1, python_2, &numbers(false, |x| x.to_le_bytes().to_vec()));
    assert_equal(&file(dir.path(), "v.npy", &content), 0.0);
    // The file ends within the last column.
    let header = "{'descr': '<f4', 'fortran_order': True, 'shape': (60, 14), }\n";
    let mut content = npy(1, header, &numbers(true, |x| x.to_le_bytes().to_vec()));
    content.truncate(content.len() - 1);
    let mut cut = VectorFile::open(&file(dir.path(), "cut.npy", &content)).unwrap();
    assert!(cut.of(&texts(60), &Silent).unwrap_err().to_string().contains("ends within row 0"));
    // The product of these sizes exceeds the size of any file.
    let header = "{'descr': '<f8', 'fortran_order': True, 'shape': (18446744073709551615, 14), }\n";
    let mut huge = VectorFile::open(&file(dir.path(), "huge.npy", &npy(1, header, &[0; 999]))).unwrap();
    assert!(huge.of(&texts(60), &Silent).is_err());
    for (descr, part) in [("<i4", "\"<i4\""), ("|V2", "\"|V2\""), ("<c8", "\"<c8\""), ("<f16", "\"<f16\"")] {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (60, 14), }}\n");
        let error = VectorFile::open(&file(dir.path(), "v.npy", &npy(1, &header, &[0; 999]))).err().unwrap();
        assert!(error.to_string().contains(part), "{error}");
    }
    let records = "{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (60, 14), }\n";
    assert!(VectorFile::open(&file(dir.path(), "v.npy", &npy(1, records, &[]))).is_err());
}

#[test]
fn npz_holds_one_array() {
    let dir = tempfile::tempdir().unwrap();
    let header = "{'descr': '<f4', 'fortran_order': True, 'shape': (60, 14), }\n";
    let array = npy(1, header, &numbers(true, |x| x.to_le_bytes().to_vec()));
    let archive = |names: &[&str], method| {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for name in names {
            writer.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
            writer.write_all(&array).unwrap();
        }
        writer.finish().unwrap().into_inner()
    };
    for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
        assert_equal(&file(dir.path(), "v.npz", &archive(&["arr_0.npy"], method)), 0.0);
    }
    let two = file(dir.path(), "two.npz", &archive(&["a.npy", "b.npy"], zip::CompressionMethod::Stored));
    let error = VectorFile::open(&two).err().unwrap().to_string();
    assert!(error.contains("[\"a\", \"b\"], not one"), "{error}");
    let error = VectorFile::open(&file(dir.path(), "no.npz", &array)).err().unwrap().to_string();
    assert!(error.contains("is no npz file"), "{error}");
}

#[test]
fn safetensors_holds_one_matrix() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = |header: &str, data: &[u8]| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        file(dir.path(), "v.safetensors", &bytes)
    };
    let types: [(&str, Bytes, f32, usize); 4] = [
        ("F16", |x| f16::from_f32(x).to_le_bytes().to_vec(), 2e-3, 2),
        ("BF16", |x| bf16::from_f32(x).to_le_bytes().to_vec(), 2e-2, 2),
        ("F32", |x| x.to_le_bytes().to_vec(), 0.0, 4),
        ("F64", |x| f64::from(x).to_le_bytes().to_vec(), 0.0, 8),
    ];
    for (dtype, bytes, tolerance, size) in types {
        let end = 60 * 14 * size;
        let header = format!(
            r#"{{"__metadata__":{{"a":"b"}},"v":{{"dtype":"{dtype}","shape":[60,14],"data_offsets":[0,{end}]}}}}"#
        );
        assert_equal(&tensors(&header, &numbers(false, bytes)), tolerance);
    }
    for (header, part) in [
        (r#"{"v":{"dtype":"I8","shape":[60,14],"data_offsets":[0,840]}}"#, "\"I8\""),
        (r#"{"v":{"dtype":"F32","shape":[840],"data_offsets":[0,3360]}}"#, "shape [840]"),
        (r#"{"v":{"dtype":"F32","shape":[60,14],"data_offsets":[0,3364]}}"#, "3364"),
        (r#"{"v":{"dtype":"F32","shape":[60,14],"data_offsets":[9,3]}}"#, "byte 9 to 3"),
        (r#"{"v":{},"w":{}}"#, "[\"v\", \"w\"], not one"),
        ("{}", "not one"),
        ("[]", "no safetensors file"),
    ] {
        let error = VectorFile::open(&tensors(header, &[0; 4000])).err().unwrap().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// `fit` accepts the vectors that `embed` wrote for the texts of the corpus.
#[cfg(feature = "bulk")]
#[test]
fn every_output_of_embed_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let [table, corpus] = ["table", "corpus.txt"].map(|name| fixtures("refined").join(name).display().to_string());
    let mut all = Vec::new();
    for name in ["v.jsonl", "v.npy", "v.safetensors", "v.parquet"] {
        let path = dir.path().join(name);
        let out = path.display().to_string();
        let made = Command::new(env!("CARGO_BIN_EXE_embedding-server"))
            .args(["embed", &corpus, "--model", &table, "-o", &out])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        all.push(read(&path));
    }
    assert_eq!(all[0].len(), 60);
    for other in &all[1..] {
        for (a, b) in all[0].iter().zip(other) {
            assert!(difference(a, b) < 1e-6);
        }
    }
}

#[test]
fn empty_lines_end_a_file_and_do_not_stand_within_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "v.jsonl", b"[1, 2]\n{\"embedding\": [3, 4.5]}\n\n  \n");
    let mut vectors = VectorFile::open(&path).unwrap();
    assert_eq!(vectors.of(&texts(2), &Silent).unwrap(), [[1.0, 2.0], [3.0, 4.5]]);
    vectors.finish().unwrap();
    for (content, part) in [
        ("[1]\n\n[2]\n", "line 2"),
        ("[1]\n[NaN]\n", "not finite"),
        ("[1]\n{\"vector\": [1]}\n", "holds no array"),
        ("[1]\n[\"1\"]\n", "something else than numbers"),
    ] {
        let path = file(dir.path(), "v.jsonl", content.as_bytes());
        let error = VectorFile::open(&path).unwrap().of(&texts(3), &Silent).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains(part), "{error}");
    }
}
