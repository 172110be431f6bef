//! Compiled tokenizers: the same IDs as from the tokenizer.json, and a file that is damaged or forged is never trusted.

use std::fs;
use std::path::{Path, PathBuf};

use layer0::TokenizerCache;
use layer0::checkpoint::{Checkpoint, Overrides, tokenizer_cache, tokenizer_json};
use layer0::extract::card::Origin;
use layer0::extract::source::LocalSource;
use layer0::extract::{Options, extract};
use layer0::progress::Silent;
use layer0_tokenizers::choose::Tokenizer;
use layer0_tokenizers::compiled::CompiledError;
use layer0_tokenizers::reference::HfTokenizer;
use twox_hash::XxHash3_128;

use crate::common::{checkpoint, copy_of};
use crate::texts::{Texts, pieces};

const KEY: u128 = 7;

fn compiled(name: &str) -> (Vec<u8>, Tokenizer, Vec<u8>) {
    let json = fs::read(checkpoint(name).join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_json(&json).unwrap();
    let compiled = tokenizer.compile(&json, KEY).unwrap();
    (json, tokenizer, compiled)
}

fn open(compiled: &[u8]) -> Result<Tokenizer, CompiledError> {
    Tokenizer::from_compiled(&mut &*compiled, compiled.len() as u64, KEY)
}

fn ids(tokenizer: &Tokenizer, text: &str, special: bool) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.choice.implementation.encode(text, special, &mut ids).unwrap();
    ids
}

/// Returns texts for the tokenizer of a tokenizer.json.
fn texts(json: &[u8], seed: u64, count: usize) -> Vec<String> {
    let reference = HfTokenizer::from_json(json).unwrap();
    let added: Vec<String> = reference.vocabulary().added.into_iter().map(|token| token.content).collect();
    Texts::new(seed, &pieces(json, &reference), &added, &[]).take(count).collect()
}

#[test]
fn the_compiled_tokenizer_of_every_checkpoint_gives_the_same_ids() {
    for (seed, entry) in fs::read_dir(checkpoint("")).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (json, tokenizer, compiled) = compiled(&name);
        let opened = open(&compiled).unwrap();
        assert_eq!(opened.choice.implementation.name(), tokenizer.choice.implementation.name());
        assert_eq!(opened.choice.refused, tokenizer.choice.refused);
        assert_eq!((&opened.vocabulary, &opened.pieces), (&tokenizer.vocabulary, &tokenizer.pieces), "{name}");
        assert_eq!(opened.digest, tokenizer.digest);
        for text in texts(&json, seed as u64, 100) {
            for special in [true, false] {
                assert_eq!(ids(&opened, &text, special), ids(&tokenizer, &text, special), "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn a_compiled_tokenizer_that_is_changed_anywhere_is_refused() {
    let (_, _, good) = compiled("llama");
    let mut rng = fastrand::Rng::with_seed(1);
    let header: Vec<usize> = (0..200).collect();
    let anywhere: Vec<usize> = (0..2_000).map(|_| rng.usize(..good.len())).collect();
    for at in header.into_iter().chain(anywhere) {
        let mut bad = good.clone();
        bad[at] ^= 1 << rng.u32(..8);
        assert!(open(&bad).is_err(), "byte {at}");
    }
    for length in (0..300).chain((0..300).map(|_| rng.usize(..good.len()))) {
        assert!(open(&good[..length]).is_err(), "cut to {length} bytes");
    }
    assert!(open(&[&good[..], b"x"].concat()).is_err());
    let other = Tokenizer::from_compiled(&mut &*good, good.len() as u64, KEY + 1);
    assert!(matches!(other, Err(CompiledError::Outdated(_))));
}

/// Somebody who can write the file can also write its digest.
#[test]
fn a_forged_compiled_tokenizer_gives_an_error_or_ids_of_the_vocabulary() {
    let mut rng = fastrand::Rng::with_seed(2);
    for name in ["llama", "gemma3", "qwen2", "gpt-neox"] {
        let (json, _, good) = compiled(name);
        let start = good.iter().position(|&byte| byte == b'\n').unwrap() + 1 + 32;
        let texts = texts(&json, 3, 20);
        let (mut refused, mut opened) = (0, 0);
        for _ in 0..60 {
            let mut bad = good.clone();
            for _ in 0..rng.usize(1..4) {
                // Lengths and IDs are small numbers, so high bytes and all bits at once matter as much as single bits.
                let at = rng.usize(start..bad.len());
                bad[at] = [rng.u8(..), 0xFF, 0, bad[at] ^ 1 << rng.u32(..8)][rng.usize(..4)];
            }
            if rng.bool() {
                // A part of the file moves.
                let (from, to) = (rng.usize(start..bad.len()), rng.usize(start..bad.len()));
                let length = rng.usize(..64).min(bad.len() - from.max(to));
                bad.copy_within(from..from + length, to);
            }
            let digest = XxHash3_128::oneshot(&bad[start..]).to_le_bytes();
            bad[start - 16..start].copy_from_slice(&digest);
            let Ok(tokenizer) = open(&bad) else {
                refused += 1;
                continue;
            };
            opened += 1;
            let most = tokenizer.vocabulary.max_id();
            for text in &texts {
                let found = ids(&tokenizer, text, true);
                assert!(found.iter().all(|&id| u64::from(id) <= most), "{name}: {text:?}");
                found.iter().for_each(|&id| tokenizer.pieces.write(id, &mut String::new()));
            }
        }
        assert!(refused > 3 && opened > 3, "{name}: {refused} refused, {opened} opened");
    }
}

/// Writes the tokenizer.json of a checkpoint with enough white space behind it to be compiled.
fn large(name: &str, dir: &Path) -> PathBuf {
    let mut json = fs::read(checkpoint(name).join("tokenizer.json")).unwrap();
    json.resize(tokenizer_cache::SMALLEST as usize, b' ');
    let path = dir.join("tokenizer.json");
    fs::write(&path, json).unwrap();
    path
}

fn files(dir: &Path) -> Vec<PathBuf> {
    layer0_files::entries(dir).unwrap().into_iter().map(|(path, _)| path).collect()
}

const TEXT: &str = "Hello, world! 안녕 <s>";

#[test]
fn a_large_tokenizer_is_compiled_once_and_then_opened_from_the_cache() {
    let work = tempfile::tempdir().unwrap();
    let dir = work.path().join("new/cache");
    let cache = TokenizerCache::Directory(dir.clone());
    let path = large("llama", work.path());
    let expected = ids(&tokenizer_json::open(&path).unwrap(), TEXT, true);
    assert_eq!(ids(&tokenizer_cache::open(&path, &cache).unwrap(), TEXT, true), expected);
    let [written] = &files(&dir)[..] else { panic!("{:?}", files(&dir)) };
    let good = fs::read(written).unwrap();

    // Another tokenizer under the right key shows which file is read.
    let json = fs::read(checkpoint("qwen2").join("tokenizer.json")).unwrap();
    let other = Tokenizer::from_json(&json).unwrap();
    let key = XxHash3_128::oneshot(&fs::read(&path).unwrap());
    let forged = other.compile(&json, key).unwrap();
    let others = ids(&other, TEXT, true);
    assert_ne!(others, expected);
    fs::write(written, &forged).unwrap();
    assert_eq!(ids(&tokenizer_cache::open(&path, &cache).unwrap(), TEXT, true), others);
    // With "off", it is not read.
    assert_eq!(ids(&tokenizer_cache::open(&path, &TokenizerCache::Off).unwrap(), TEXT, true), expected);
    // A file that others can write is neither read nor kept.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(written, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(ids(&tokenizer_cache::open(&path, &cache).unwrap(), TEXT, true), expected);
        assert_eq!(fs::read(written).unwrap(), good);
        assert_eq!(fs::metadata(written).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    }
    // A damaged file is replaced.
    fs::write(written, &good[..good.len() / 2]).unwrap();
    assert_eq!(ids(&tokenizer_cache::open(&path, &cache).unwrap(), TEXT, true), expected);
    assert_eq!(fs::read(written).unwrap(), good);
    // The compiled tokenizer beside the tokenizer.json comes first.
    fs::write(path.with_file_name(tokenizer_cache::BESIDE), &forged).unwrap();
    assert_eq!(ids(&tokenizer_cache::open(&path, &cache).unwrap(), TEXT, true), others);
    // A changed tokenizer.json has another key.
    let path = large("gemma", work.path());
    let expected = ids(&tokenizer_json::open(&path).unwrap(), TEXT, true);
    assert_eq!(ids(&tokenizer_cache::open(&path, &cache).unwrap(), TEXT, true), expected);
    assert_eq!(files(&dir).len(), 2);
}

#[test]
fn the_cache_is_bounded_and_small_tokenizers_and_other_files_stay_out_of_it() {
    let work = tempfile::tempdir().unwrap();
    let dir = work.path().join("cache");
    let cache = TokenizerCache::Directory(dir.clone());
    tokenizer_cache::open(&checkpoint("llama").join("tokenizer.json"), &cache).unwrap();
    assert!(!dir.exists());
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("letter.txt"), "dear").unwrap();
    for n in 0..20 {
        fs::write(dir.join(format!("{n:032x}.tokenizer")), "old").unwrap();
    }
    let path = large("llama", work.path());
    tokenizer_cache::open(&path, &cache).unwrap();
    let key = XxHash3_128::oneshot(&fs::read(&path).unwrap());
    let left = files(&dir);
    assert!(left.contains(&dir.join("letter.txt")) && left.contains(&dir.join(format!("{key:032x}.tokenizer"))));
    assert_eq!(left.len(), 16 + 1);
    // A cache that cannot be written is no error.
    let nowhere = TokenizerCache::Directory(dir.join("letter.txt").join("cache"));
    tokenizer_cache::open(&path, &nowhere).unwrap();
}

#[test]
fn extract_writes_the_compiled_tokenizer_beside_the_tokenizer_and_does_not_copy_one() {
    let (source, work) = (copy_of("llama"), tempfile::tempdir().unwrap());
    large("llama", source.path());
    fs::write(source.path().join(tokenizer_cache::BESIDE), "from a stranger").unwrap();
    let out = work.path().join("out");
    let from = LocalSource::open(source.path(), Origin::local(source.path())).unwrap();
    extract(&from, &out, &Options::default(), &Silent).unwrap();
    let key = XxHash3_128::oneshot(&fs::read(out.join("tokenizer.json")).unwrap());
    let compiled = fs::read(out.join(tokenizer_cache::BESIDE)).unwrap();
    assert!(Tokenizer::from_compiled(&mut &*compiled, compiled.len() as u64, key).is_ok());
    let nowhere = TokenizerCache::Directory(work.path().join("cache"));
    let overrides = Overrides { tokenizer_cache: nowhere, ..Overrides::default() };
    let opened = Checkpoint::open(&out, &overrides).unwrap();
    let expected = tokenizer_json::open(&out.join("tokenizer.json")).unwrap();
    assert_eq!(ids(&opened.tokenizer, TEXT, true), ids(&expected, TEXT, true));
    assert!(!work.path().join("cache").exists());
}
