//! Tests models by Hub ID, against a Hub that fails in various ways.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use layer0::HubError;
use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::{Embedder, Settings};
use layer0::hub::{Cached, Hub};
use layer0::location::HubId;
use layer0::progress::Silent;

use crate::common::{checkpoint, copy_of};
use crate::fake_hub::{COMMIT, FakeHub, Fault, ID};
use crate::models::{HIDDEN, ROWS, sharded};

/// The number of bytes of the table and the norm of the sharded model.
const LAYER0: u64 = ((ROWS + 1) * HIDDEN * 2) as u64;
const SHARD: &str = "model-00002-of-00003.safetensors";

struct Setup {
    source: PathBuf,
    cache: tempfile::TempDir,
    hub: FakeHub,
}

impl Setup {
    /// Creates the setup with the sharded model.
    fn new() -> Self {
        Self::of(sharded())
    }

    fn of(source: &Path) -> Self {
        let hub = FakeHub::start(source);
        Self { source: source.to_owned(), cache: tempfile::tempdir().unwrap(), hub }
    }

    fn fetch(&self) -> Result<Cached, HubError> {
        fetch(&self.hub.hub(self.cache.path()))
    }

    fn error(&self) -> String {
        self.fetch().expect_err("it was fetched").to_string()
    }

    /// Checks that the vectors of a checkpoint equal those of the source.
    fn assert_right(&self, dir: &Path) {
        assert_eq!(vectors(dir), vectors(&self.source));
    }

    /// Returns a command that runs the real binary with this Hub and cache.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_embedding-server"));
        for (name, _) in std::env::vars() {
            let upper = name.to_uppercase();
            if ["HF_", "EMBEDDING_SERVER_", "HUGGING"].iter().any(|p| name.starts_with(p)) || upper.ends_with("_PROXY")
            {
                command.env_remove(name);
            }
        }
        command.env("HF_ENDPOINT", &self.hub.endpoint).env("HF_HOME", self.cache.path().join("home"));
        command.env("HF_HUB_CACHE", self.cache.path()).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

fn id() -> HubId {
    HubId::parse(ID).unwrap()
}

fn fetch(hub: &Hub) -> Result<Cached, HubError> {
    hub.fetch(&id(), &Overrides::default(), &Silent)
}

fn vectors(dir: &Path) -> Vec<Vec<f32>> {
    let checkpoint = Checkpoint::open(dir, &Overrides::default()).unwrap();
    Embedder::new(checkpoint, Settings::default()).unwrap().embed(&["hello", "안녕하세요, 세계!", ""]).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns every file under `dir` with its size, except for locks.
fn files(dir: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path));
        } else {
            found.push((path.display().to_string(), std::fs::metadata(&path).map_or(0, |m| m.len())));
        }
    }
    found
}

#[test]
fn of_a_sharded_model_no_more_than_its_layer_0_is_fetched() {
    let setup = Setup::new();
    let cached = setup.fetch().unwrap();
    setup.assert_right(&cached.dir);
    let served = setup.hub.served();
    let small: u64 = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"]
        .iter()
        .map(|f| setup.hub.size(f))
        .sum();
    let needed = LAYER0 + small;
    println!("{served} bytes served for {needed} of tensors and small files");
    assert!(served < needed * 102 / 100, "{served} bytes for {needed}");
    assert!(served < 2_500_000);
    let asked = setup.hub.asked();
    assert!(!asked.iter().any(|a| a.file == "README.md" || a.file == "model-00001-of-00003.safetensors"), "{asked:?}");

    let names: Vec<_> = safetensors_names(&cached.dir);
    assert_eq!(names, ["model.embed_tokens.weight", "model.norm.weight"]);
    let card = std::fs::read_to_string(cached.dir.join("README.md")).unwrap();
    for part in [ID, COMMIT, "license: mit", "base_model: org/model", "byte ranges", "sha256"] {
        assert!(card.contains(part), "{card}");
    }

    // A cached model needs no request. `fetch` sends one request, which asks for the current commit.
    let before = setup.hub.asked().len();
    let hub = setup.hub.hub(setup.cache.path());
    assert_eq!(hub.cached_or_fetched(&id(), &Overrides::default(), &Silent).unwrap(), cached);
    assert_eq!(setup.hub.asked().len(), before);
    assert_eq!(fetch(&hub).unwrap(), cached);
    assert_eq!(setup.hub.asked().len(), before + 1);
}

fn safetensors_names(dir: &Path) -> Vec<String> {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let mut names: Vec<String> =
        safetensors::SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn the_cache_has_pythons_layout() {
    let setup = Setup::new();
    setup.fetch().unwrap();
    let model = setup.cache.path().join("models--org--model");
    assert_eq!(std::fs::read_to_string(model.join("refs/main")).unwrap(), COMMIT);
    let pointer = model.join("snapshots").join(COMMIT).join("config.json");
    let target = std::fs::read_link(&pointer).unwrap();
    assert!(target.starts_with("../../blobs"), "{target:?}");
    assert_eq!(std::fs::read(&pointer).unwrap(), std::fs::read(setup.source.join("config.json")).unwrap());
    // No unfinished file is left, and no lock other than those that huggingface_hub also leaves.
    let left: Vec<_> = files(setup.cache.path())
        .into_iter()
        .filter(|(f, _)| f.contains("incomplete") || f.contains("layer0") && f.contains("lock"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_token_is_sent_to_the_hub_and_never_to_the_store() {
    let setup = Setup::new();
    setup.hub.demand("secret");
    let error = setup.error();
    assert!(
        error.contains("401") && error.contains("set HF_TOKEN") && error.contains("Access is restricted"),
        "{error}"
    );

    let mut settings = setup.hub.settings(setup.cache.path());
    settings.token = Some("wrong".to_owned());
    let error = fetch(&Hub::new(settings.clone())).unwrap_err().to_string();
    assert!(error.contains("403") && error.contains("accept the model's conditions"), "{error}");
    assert!(!error.contains("wrong"), "{error}");

    settings.token = Some("secret".to_owned());
    setup.assert_right(&fetch(&Hub::new(settings)).unwrap().dir);
    let stored: Vec<_> = setup.hub.asked().into_iter().filter(|asked| asked.stored).collect();
    assert!(stored.len() >= 6, "{stored:?}");
    assert!(stored.iter().all(|asked| asked.authorization.is_none()), "{stored:?}");
}

#[test]
fn a_cut_is_gone_on_with() {
    let setup = Setup::new();
    let cuts = AtomicUsize::new(0);
    setup.hub.fault(move |asked| {
        let large = asked.stored && asked.range.is_some_and(|(from, to)| to - from > 100_000);
        (large && cuts.fetch_add(1, Ordering::SeqCst) < 9).then_some(Fault::Cut(200_000))
    });
    setup.assert_right(&setup.fetch().unwrap().dir);
    assert!(setup.hub.served() < LAYER0 * 103 / 100, "{}", setup.hub.served());
    let parts: Vec<_> = setup.hub.asked().into_iter().filter(|a| a.stored && a.file == SHARD).collect();
    assert_eq!(parts.len(), 2 + 1 + 9, "{parts:?}");
}

#[test]
fn what_brings_nothing_ends_with_what_to_do() {
    let setup = Setup::new();
    setup.hub.fault(|asked| (asked.stored).then_some(Fault::Cut(0)));
    let error = setup.error();
    assert!(error.contains("cut") && error.contains("it goes on where it stopped"), "{error}");
    let layer0 = setup.cache.path().join("models--org--model/layer0");
    assert!(!layer0.join(COMMIT).exists());

    setup.hub.fault(|asked| (asked.file == "api").then_some(Fault::Status(503)));
    let error = setup.error();
    assert!(error.contains("503") && error.contains("try again later"), "{error}");

    // The Hub responds with status 429 twice and then succeeds.
    let busy = AtomicUsize::new(0);
    setup.hub.fault(move |_| (busy.fetch_add(1, Ordering::SeqCst) < 2).then_some(Fault::Status(429)));
    setup.assert_right(&setup.fetch().unwrap().dir);
}

#[test]
fn silence_is_an_error_after_the_timeout() {
    let setup = Setup::new();
    setup.hub.fault(|asked| asked.stored.then_some(Fault::Hold(3)));
    let mut settings = setup.hub.settings(setup.cache.path());
    settings.timeout = Duration::from_millis(200);
    let error = fetch(&Hub::new(settings)).unwrap_err().to_string();
    assert!(error.contains("timeout") && error.contains("HF_HUB_DOWNLOAD_TIMEOUT"), "{error}");
}

#[test]
fn a_changed_byte_is_noticed_and_nothing_of_it_stays() {
    let setup = Setup::new();
    setup.hub.fault(|asked| (asked.file == "tokenizer.json").then_some(Fault::Corrupt));
    let error = setup.error();
    assert!(error.contains("tokenizer.json") && error.contains("git sha1"), "{error}");
    let poisoned = files(setup.cache.path());
    assert!(!poisoned.iter().any(|(f, _)| f.contains("tokenizer.json") || f.contains("incomplete")), "{poisoned:?}");
    setup.hub.fault(|_| None);
    setup.assert_right(&setup.fetch().unwrap().dir);
}

/// A repository that is itself a layer-0 checkpoint is downloaded as whole files, so that their digests are checked.
#[test]
fn a_layer_0_repository_is_checked_by_its_sha256() {
    let setup = Setup::of(&checkpoint("qwen3"));
    setup.hub.fault(|asked| {
        (asked.stored && asked.method == "GET" && asked.range.is_some_and(|(from, to)| to - from > 9000))
            .then_some(Fault::Corrupt)
    });
    let error = setup.error();
    assert!(error.contains("model.safetensors") && error.contains("the sha256"), "{error}");
    setup.hub.fault(|_| None);
    let cached = setup.fetch().unwrap();
    assert!(cached.dir.ends_with(format!("snapshots/{COMMIT}")), "{cached:?}");
    assert!(!cached.origin.ranges);
    setup.assert_right(&cached.dir);
}

/// A wrong part that an older run left does not damage the file that is fetched now.
#[test]
fn a_wrong_part_in_the_cache_is_fetched_anew() {
    let setup = Setup::new();
    setup.hub.fault(|asked| (asked.file == "tokenizer.json" && asked.method == "GET").then_some(Fault::Status(404)));
    setup.error();
    let blobs = setup.cache.path().join("models--org--model/blobs");
    let part = files(&blobs).into_iter().find(|(f, _)| f.ends_with(".incomplete")).unwrap().0;
    std::fs::write(part, "not the beginning").unwrap();
    setup.hub.fault(|_| None);
    setup.assert_right(&setup.fetch().unwrap().dir);
}

#[test]
fn pages_refusals_and_other_servers_never_become_files() {
    const PAGE: Fault = Fault::Instead("content-type: text/html\r\netag: \"a\"\r\n", "<html>log in</html>");
    let cases: [(&str, &str, Fault, &[&str]); 12] = [
        ("api", "GET", PAGE, &["HTML page", "login page"]),
        ("api", "GET", Fault::Instead("", "{}"), &["something else", "HF_ENDPOINT"]),
        ("api", "GET", Fault::Status(404), &["404", "an existing model at"]),
        ("config.json", "HEAD", PAGE, &["HTML page"]),
        ("config.json", "GET", PAGE, &["HTML page"]),
        ("config.json", "GET", Fault::Status(403), &["403", "HF_TOKEN"]),
        ("config.json", "HEAD", Fault::Instead("etag: \"../../x\"\r\ncontent-length: 5\r\n", ""), &["no usable ETag"]),
        ("config.json", "HEAD", Fault::Instead("etag: \"x\"\r\ncontent-length: 5\r\n", ""), &["config.json"]),
        (SHARD, "GET", PAGE, &["HTML page"]),
        (SHARD, "GET", Fault::Status(403), &["403"]),
        (SHARD, "GET", Fault::Whole, &["byte range", "another mirror"]),
        (SHARD, "GET", Fault::Status(500), &["500", "try again later"]),
    ];
    for (file, method, fault, parts) in cases {
        let setup = Setup::new();
        let shown = format!("{file} {method} {fault:?}");
        setup.hub.fault(move |asked| (asked.file == file && asked.method == method).then(|| fault.clone()));
        let error = setup.error();
        for part in parts {
            assert!(error.contains(part), "{shown}: {error}");
        }
        let kept = files(setup.cache.path());
        assert!(
            !kept.iter().any(|(f, _)| f.ends_with(&format!("/{file}")) && f.contains("snapshots")),
            "{shown}: {kept:?}"
        );
        setup.hub.fault(|_| None);
        setup.assert_right(&setup.fetch().unwrap().dir);
    }
}

#[test]
fn a_hostile_hub_gets_nowhere() {
    let setup = Setup::new();
    setup.hub.say_commit("../../../../tmp/x");
    assert!(setup.error().contains("40 hexadecimal digits"));
    setup.hub.say_commit(COMMIT);
    setup.hub.fault(|asked| (asked.file == "config.json").then_some(Fault::Instead("location: x\r\n", "")));
    assert!(setup.error().contains("no usable ETag or size"));

    let source = copy_of("llama-sharded");
    let index = r#"{"weight_map": {"model.embed_tokens.weight": "../x.safetensors"}}"#;
    std::fs::write(source.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(Setup::of(source.path()).error().contains("plain file names"));

    for (start, part) in [
        (u64::MAX.to_le_bytes().to_vec(), "header length"),
        (5u64.to_le_bytes().iter().copied().chain(*b"{nope").collect(), "no valid safetensors header"),
        ([2u64.to_le_bytes().as_slice(), b"{}trailing"].concat(), "not what its header says"),
    ] {
        let source = copy_of("llama");
        std::fs::write(source.path().join("model.safetensors"), start).unwrap();
        let error = Setup::of(source.path()).error();
        assert!(error.contains(part), "{error}");
    }
    let source = copy_of("llama");
    std::fs::rename(source.path().join("model.safetensors"), source.path().join("pytorch_model.bin")).unwrap();
    assert!(Setup::of(source.path()).error().contains("no weights that can be read in parts"));
}

#[test]
fn offline_nothing_is_asked_and_a_missing_model_says_how_to_get_it() {
    let setup = Setup::new();
    let mut settings = setup.hub.settings(setup.cache.path());
    settings.offline = true;
    let offline = Hub::new(settings);
    let error = fetch(&offline).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE") && error.contains("embedding-server fetch org/model"), "{error}");
    assert!(setup.hub.asked().is_empty());

    let cached = setup.fetch().unwrap();
    let before = setup.hub.asked().len();
    assert_eq!(fetch(&offline).unwrap(), cached);
    let pinned = HubId { revision: COMMIT.to_owned(), ..id() };
    assert_eq!(offline.fetch(&pinned, &Overrides::default(), &Silent).unwrap().dir, cached.dir);
    assert_eq!(setup.hub.asked().len(), before);
}

/// A snapshot that huggingface_hub downloaded is served from its place.
#[test]
fn a_whole_snapshot_of_pythons_needs_no_network() {
    let setup = Setup::new();
    let model = setup.cache.path().join("models--org--model");
    let (snapshot, blobs) = (model.join("snapshots").join(COMMIT), model.join("blobs"));
    for dir in [&snapshot, &blobs, &model.join("refs")] {
        std::fs::create_dir_all(dir).unwrap();
    }
    std::fs::write(model.join("refs/main"), COMMIT).unwrap();
    for entry in std::fs::read_dir(&setup.source).unwrap() {
        let (path, name) = {
            let e = entry.unwrap();
            (e.path(), e.file_name())
        };
        std::fs::copy(&path, blobs.join(&name)).unwrap();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).unwrap();
    }
    let hub = setup.hub.hub(setup.cache.path());
    let cached = hub.cached_or_fetched(&id(), &Overrides::default(), &Silent).unwrap();
    assert_eq!(cached.dir, snapshot);
    assert!(setup.hub.asked().is_empty());
    // Without the shard that holds layer 0 the snapshot is incomplete.
    std::fs::remove_file(snapshot.join(SHARD)).unwrap();
    let cached = hub.cached_or_fetched(&id(), &Overrides::default(), &Silent).unwrap();
    assert!(cached.dir.ends_with(format!("layer0/{COMMIT}")));
    setup.assert_right(&cached.dir);
}

/// Tensors that the user names keep their names, and a cached directory without these tensors is replaced.
#[test]
fn overrides_reach_what_is_fetched() {
    let setup = Setup::new();
    setup.fetch().unwrap();
    let overrides = Overrides { norm_tensor: Some("model.layers.9.norm.weight".to_owned()), ..Overrides::default() };
    let hub = setup.hub.hub(setup.cache.path());
    let error = hub.cached_or_fetched(&id(), &overrides, &Silent).unwrap_err().to_string();
    assert!(error.contains("no final norm"), "{error}");
    let head = Overrides { embedding_tensor: Some("lm_head.weight".to_owned()), ..Overrides::default() };
    let cached = hub.cached_or_fetched(&id(), &head, &Silent).unwrap();
    assert_eq!(safetensors_names(&cached.dir), ["lm_head.weight", "model.norm.weight"]);
    let open = |dir: &Path| Checkpoint::open(dir, &head).unwrap().table.bytes().clone();
    assert_eq!(open(&cached.dir), open(&setup.source));
}

// The real binary ------------------------------------------------------------------------------------------------------

/// A run that is killed at any byte leaves no OUT, and the next run continues its download.
#[test]
fn killed_at_any_moment_it_leaves_no_output_and_resumes() {
    let setup = Setup::new();
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("made");
    let mut served = 0;
    // Each entry is a number of bytes of a response after which the process is killed: in the first header, in the
    // table, near the table's end, in the norm, and in config.json.
    let moments: [(&'static str, usize, usize); 6] = [
        ("config.json", 0, 10),
        (SHARD, 0, 5),
        (SHARD, 100_000, 35_000),
        (SHARD, 100_000, 750_000),
        (SHARD, 100_000, 1_100_000),
        ("model-00003-of-00003.safetensors", 500, 300),
    ];
    for (file, larger, hold) in moments {
        setup.hub.fault(move |asked| {
            let this = asked.file == file && asked.method == "GET" && (file == "config.json" || asked.stored);
            let this = this && asked.range.is_some_and(|(from, to)| to - from >= larger);
            this.then_some(Fault::Hold(hold))
        });
        let mut child = setup.command(&["extract", ID, out.to_str().unwrap()]).stderr(Stdio::piped()).spawn().unwrap();
        setup.hub.wait_until_held();
        // `kill` sends SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!out.exists(), "killed at {hold} of {file}");
        served = setup.hub.served();
    }
    setup.hub.fault(|_| None);
    let output = setup.run(&["extract", ID, out.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    setup.assert_right(&out);
    assert_eq!(safetensors_names(&out).len(), 2);
    // The bytes that were held back may still have been sent, but most of the table was not fetched twice.
    let last = setup.hub.served() - served;
    assert!(last < LAYER0 / 2, "the last run fetched {last} of {LAYER0}");
    assert!(setup.hub.served() < LAYER0 * 2, "{} in all", setup.hub.served());
    assert_eq!(std::fs::read_dir(out.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn two_processes_share_one_cache() {
    let setup = Setup::new();
    setup.hub.fault(|asked| {
        (asked.file == SHARD && asked.stored && asked.range.is_some_and(|(from, to)| to - from > 100_000))
            .then_some(Fault::Hold(500_000))
    });
    let mut first = setup.command(&["fetch", ID]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    setup.hub.wait_until_held();
    setup.hub.fault(|_| None);
    // The second process waits for the first one. When the first one dies, the second continues with the part that was
    // downloaded.
    let second = setup.command(&["fetch", ID]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let third = setup.command(&["fetch", ID]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    let mut dirs = Vec::new();
    for child in [second, third] {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        dirs.push(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()));
    }
    assert_eq!(dirs[0], dirs[1]);
    setup.assert_right(&dirs[0]);
    // The table was downloaded only once for both.
    assert!(setup.hub.served() < LAYER0 * 3 / 2, "{}", setup.hub.served());
}

#[test]
fn a_hub_id_is_served_and_then_served_offline() {
    use std::io::{BufRead, BufReader};
    let setup = Setup::new();
    for offline in ["0", "1"] {
        let before = setup.hub.asked().len();
        let mut command = setup.command(&["serve", "--port", "0", "--model", &format!("m={ID}")]);
        command.env("HF_HUB_OFFLINE", offline).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        let agent = crate::common::agent();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while agent.get(format!("{url}/ready")).call().unwrap().status() != 200 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        let mut answer = agent
            .post(format!("{url}/v1/embeddings"))
            .content_type("application/json")
            .send(r#"{"input": "hello", "model": "m"}"#)
            .unwrap();
        let body: serde_json::Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
        let vector: Vec<f32> = serde_json::from_value(body["data"][0]["embedding"].clone()).unwrap();
        assert_eq!(vector, vectors(&setup.source)[0]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(setup.hub.asked().len() > before, offline == "0");
    }
    let output = setup.command(&["inspect", "org/other"]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert!(stderr(&output).contains("embedding-server fetch org/other"), "{}", stderr(&output));
}

/// A local directory of that name takes precedence, and no request is sent for a local path.
#[test]
fn a_path_that_exists_never_asks() {
    let setup = Setup::new();
    let work = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(work.path().join("org")).unwrap();
    std::os::unix::fs::symlink(checkpoint("llama"), work.path().join(ID)).unwrap();
    for path in [ID, "./org/model"] {
        let output = setup.command(&["inspect", path]).current_dir(work.path()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    for path in ["./org/none", "/org/none", "none"] {
        let output = setup.command(&["inspect", path]).current_dir(work.path()).output().unwrap();
        assert!(stderr(&output).contains("does not exist"), "{}", stderr(&output));
        let fetch = setup.command(&["fetch", path]).output().unwrap();
        assert!(stderr(&fetch).contains("is no Hub id"), "{}", stderr(&fetch));
    }
    assert!(setup.hub.asked().is_empty());
    let output = setup.run(&["extract", ID, "x", "--revision", "a b"]);
    assert!(stderr(&output).contains("no branch, tag or commit"), "{}", stderr(&output));
}

/// 200 bytes per second do not count as progress, even though bytes arrive all the time.
#[test]
fn a_hub_that_drips_is_given_up_and_gone_on_with() {
    for (file, method) in [("api", "GET"), ("tokenizer.json", "GET"), (SHARD, "GET")] {
        let setup = Setup::new();
        let mut settings = setup.hub.settings(setup.cache.path());
        settings.timeout = Duration::from_secs(1);
        let hub = Hub::new(settings);
        setup.hub.fault(move |asked| (asked.file == file && asked.method == method).then_some(Fault::Drip(4)));
        let error = fetch(&hub).unwrap_err().to_string();
        assert!(error.contains("fewer than 1024 bytes a second"), "{file}: {error}");
        setup.hub.fault(|_| None);
        setup.assert_right(&fetch(&hub).unwrap().dir);
    }
}

#[test]
fn what_reads_as_a_hub_id_and_as_a_path_is_named_as_both() {
    let setup = Setup::new();
    let work = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(work.path().join("models/llama-3")).unwrap();
    let absolute = work.path().canonicalize().unwrap().join("models/llama");
    let unreachable = "http://127.0.0.1:1";
    for (variable, value, part) in [
        ("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE is set"),
        ("HF_ENDPOINT", unreachable, "does not answer"),
        ("HF_HUB_OFFLINE", "0", "answered 404"),
    ] {
        for command in ["inspect", "fetch", "extract"] {
            setup.hub.fault(|asked| (asked.file == "api").then_some(Fault::Status(404)));
            let mut run = setup.command(&[command, "models/llama"]);
            if command == "extract" {
                run.arg("out");
            }
            let output = run.current_dir(work.path()).env(variable, value).output().unwrap();
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{said}");
            let path = absolute.display().to_string();
            for part in [part, path.as_str(), "holds llama-3", "models/llama is taken as a model of the Hub"] {
                assert!(said.contains(part), "{command} {variable}={value}: {part}: {said}");
            }
        }
    }
}

#[test]
fn credentials_of_the_endpoint_and_tokens_are_never_shown() {
    let setup = Setup::new();
    let endpoint = setup.hub.endpoint.replace("http://", "http://user:SECRET@");
    let run = |fault: Option<Fault>, args: &[&str]| {
        setup.hub.fault(move |asked| fault.clone().filter(|_| asked.file == "api"));
        let mut command = setup.command(args);
        command.env("HF_ENDPOINT", &endpoint).env("RUST_LOG", "trace").env("EMBEDDING_SERVER_LOG_LEVEL", "trace");
        command.output().unwrap()
    };
    for fault in [Fault::Status(404), Fault::Status(401), Fault::Instead("", "{}"), Fault::Status(302)] {
        let output = run(Some(fault.clone()), &["fetch", ID]);
        let said = stderr(&output);
        assert!(!output.status.success() && !said.contains("SECRET"), "{fault:?}: {said}");
    }
    let output = run(None, &["fetch", ID]);
    assert!(output.status.success(), "{}", stderr(&output));
    let authorization: Vec<_> = setup.hub.asked().into_iter().filter(|a| !a.stored).map(|a| a.authorization).collect();
    // The value is user:SECRET in base64.
    assert!(authorization.iter().all(|a| a.as_deref() == Some("Basic dXNlcjpTRUNSRVQ=")), "{authorization:?}");
    assert!(setup.hub.asked().iter().filter(|a| a.stored).all(|a| a.authorization.is_none()));
    let dir = String::from_utf8(output.stdout).unwrap();
    let card = std::fs::read_to_string(Path::new(dir.trim()).join("README.md")).unwrap();
    assert!(!card.contains("SECRET") && card.contains(&format!("{}/{ID}", setup.hub.endpoint)), "{card}");
}

#[cfg(unix)]
#[test]
fn a_complete_cache_need_not_be_writable_and_a_refused_write_names_its_owner() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;

    let setup = Setup::new();
    setup.fetch().unwrap();
    let set_mode = |mode_of_directories: u32| {
        let mut directories = vec![setup.cache.path().to_owned()];
        while let Some(directory) = directories.pop() {
            std::fs::set_permissions(&directory, PermissionsExt::from_mode(mode_of_directories)).unwrap();
            let entries = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap());
            directories.extend(entries.filter(|e| e.file_type().unwrap().is_dir()).map(|e| e.path()));
        }
    };
    let owner = setup.cache.path().metadata().unwrap().uid();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::set_permissions(elsewhere.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let binary = elsewhere.path().join("binary");
    std::fs::copy(env!("CARGO_BIN_EXE_embedding-server"), &binary).unwrap();
    let run = || {
        let like = setup.command(&["fetch", ID]);
        let mut command = Command::new(&binary);
        command.args(like.get_args()).current_dir(elsewhere.path());
        for (name, value) in like.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        // Root can write to all files and read files of other users, so root runs the command as another user.
        if owner == 0 {
            command.uid(65534).gid(65534);
        }
        command.output().unwrap()
    };
    set_mode(0o555);
    let complete = run();
    set_mode(0o755);
    let refs = setup.cache.path().join(format!("models--{}/refs", ID.replace('/', "--")));
    std::fs::remove_dir_all(refs).unwrap();
    set_mode(0o555);
    let refused = run();
    set_mode(0o755);
    assert!(complete.status.success(), "{}", stderr(&complete));
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for part in ["refs/main: cannot be written", &format!("belongs to the user with the ID {owner}"), "set HF_HOME"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("mergekit"), "{said}");
}
