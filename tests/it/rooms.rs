//! The rooms of the server: what each may import, and what requests carry from one to the next.

use std::collections::{BTreeMap, BTreeSet};

use crate::architecture::{only_in, sources};

/// The rooms of the server. A file imports only from rooms that stand before its own.
const ROOMS: [&str; 9] = ["observe", "error", "state", "response", "request", "routes", "router", "socket", "batches"];

/// The files above the rooms. They do not import each other.
const ABOVE_THE_ROOMS: [&str; 3] = ["preflight", "reload", "serve"];

/// Returns the paths that `tree`, the rest of a path or a `use` declaration, stands for: `a::{b, c::d}` is `a::b` and
/// `a::c::d`. Whatever follows the path is ignored.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let end = tree.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(tree.len());
    let (name, rest) = tree.split_at(end);
    if name.is_empty() && tree.starts_with('{') {
        let (mut depth, mut start, mut found) = (0, 1, Vec::new());
        for (at, c) in tree.char_indices() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if (depth == 1 && c == ',') || depth == 0 {
                found.extend(expand(tree[start..at].trim()));
                start = at + 1;
            }
            if depth == 0 {
                break;
            }
        }
        return found;
    }
    let mut paths = rest.strip_prefix("::").map(expand).unwrap_or_default();
    if paths.is_empty() {
        paths.push(Vec::new());
    }
    for path in &mut paths {
        path.insert(0, name.to_owned());
    }
    paths
}

/// Returns the files of the server with the files of the server that each imports, as module paths such as
/// `request/json`.
fn server_imports() -> BTreeMap<String, BTreeSet<String>> {
    let sources = sources();
    let code = sources.iter().filter_map(|(name, text)| {
        let module = name.strip_prefix("src/server/")?.strip_suffix(".rs")?;
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        Some((module.to_owned(), lines.collect::<Vec<_>>().join("\n")))
    });
    let code: BTreeMap<String, String> = code.collect();
    let resolve = |of: &str, path: &[String]| {
        // The longest beginning of the path that is a file names the module; the rest is an item in it.
        let file = (1..=path.len()).rev().map(|length| path[..length].join("/")).find(|file| code.contains_key(file));
        file.unwrap_or_else(|| panic!("{of} imports {path:?}, which is not in a room"))
    };
    let imports = |(module, text): (&String, &String)| {
        let own: Vec<String> = module.split('/').map(str::to_owned).collect();
        let mut found = BTreeSet::new();
        for (at, _) in text.match_indices("crate::server::") {
            found.extend(expand(&text[at + "crate::server::".len()..]).iter().map(|path| resolve(module, path)));
        }
        for (at, _) in text.match_indices("super::").filter(|(at, _)| !text[..*at].ends_with("super::")) {
            let climbs = text[at..].split("super::").take_while(|part| part.is_empty()).count();
            let above = &own[..own.len().saturating_sub(climbs)];
            for path in expand(&text[at + climbs * "super::".len()..]) {
                found.insert(resolve(module, &[above, &path[..]].concat()));
            }
        }
        // A module names its own children without a prefix.
        let children = code.keys().filter_map(|file| Some((file, file.strip_prefix(&format!("{module}/"))?)));
        for (file, child) in children {
            let used = text.match_indices(&format!("{child}::")).any(|(at, _)| {
                !text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
            });
            if used {
                found.insert(file.clone());
            }
        }
        found.remove(module);
        (module.clone(), found)
    };
    code.iter().map(imports).collect()
}

#[test]
fn a_room_of_the_server_imports_only_from_the_rooms_below_it() {
    let floor = |module: &str| {
        let room = module.split('/').next().unwrap();
        let floor = ROOMS.iter().position(|known| *known == room);
        floor.unwrap_or_else(|| {
            assert!(ABOVE_THE_ROOMS.contains(&room), "src/server/{module}.rs is in no room");
            ROOMS.len()
        })
    };
    let imports = server_imports();
    // One import of each form, so that this test does not pass because it finds none.
    for (module, imported) in [
        ("request/json", "error"),
        ("router", "routes/embeddings"),
        ("router", "router/paths"),
        ("socket/connection", "socket/protocol"),
        ("router/active", "router"),
    ] {
        assert!(imports[module].contains(imported), "{module} imports {imported}");
    }
    for (module, imported) in &imports {
        for other in imported {
            let same_room = module.split('/').next() == other.split('/').next();
            assert!(
                same_room || floor(other) < floor(module),
                "src/server/{module}.rs imports src/server/{other}.rs, which is not in a room below its own"
            );
        }
    }
    let order = ROOMS.map(|room| format!("`{room}`")).join(" < ");
    let map = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md")).unwrap();
    assert!(map.contains(&order), "ARCHITECTURE.md does not say {order}");
}

#[test]
fn no_files_of_the_server_import_each_other_in_a_circle() {
    let mut imports = server_imports();
    // A file that imports nothing that is left, or that nothing left imports, is not part of a circle.
    loop {
        let is_imported = |module: &str| imports.values().any(|imported| imported.contains(module));
        let free = imports.iter().find(|(module, imported)| imported.is_empty() || !is_imported(module));
        let Some(free) = free.map(|(module, _)| module.clone()) else { break };
        imports.remove(&free);
        for imported in imports.values_mut() {
            imported.remove(&free);
        }
    }
    assert!(imports.is_empty(), "files that import each other in a circle: {imports:#?}");
}

#[test]
fn requests_and_responses_carry_one_value_each_outside_of_signatures() {
    only_in(
        "extensions_mut()",
        &[
            "src/server/error.rs",
            "src/server/response/accounted.rs",
            "src/server/router.rs",
            "src/server/router/scope.rs",
        ],
        "src/server/",
    );
    only_in("Extension(", &[], "src/server/");
    for (name, text) in sources() {
        for (at, call) in text.match_indices("extensions_mut().insert(") {
            let value = &text[at + call.len()..];
            let allowed = ["context)", "accounting)", "ResponseAccounting::"];
            assert!(
                allowed.iter().any(|allowed| value.starts_with(allowed)),
                "{name} adds another extension to a request or a response"
            );
        }
    }
}
