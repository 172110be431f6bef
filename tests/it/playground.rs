//! The page at / as bytes. The suite tests/playground drives it in a browser.

use crate::common::{TestApp, agent};

const PATHS: [&str; 4] = ["/", "/playground.css", "/playground.js", "/playground-map.js"];

#[test]
fn the_playground_loads_only_from_the_server() {
    let app = TestApp::start(|_| {});
    for (path, kind) in PATHS.into_iter().zip(["text/html", "text/css", "text/javascript", "text/javascript"]) {
        let mut answer = agent().get(app.url(path)).call().unwrap();
        assert_eq!(answer.status(), 200);
        let header = |name: &str| answer.headers()[name].to_str().unwrap();
        assert_eq!(header("content-type"), format!("{kind}; charset=utf-8"));
        assert_eq!(header("x-content-type-options"), "nosniff");
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"), "{policy}");
        // The only URL in these files is the name of the SVG namespace.
        let text = answer.body_mut().read_to_string().unwrap().replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("://"), "{path} names another host");
    }
}

#[test]
fn the_playground_can_be_switched_off() {
    let app = TestApp::start(|c| c.server.playground = false);
    for path in PATHS.into_iter().chain(["/model-card"]) {
        assert_eq!(app.get(path).error().0, 404, "{path}");
    }
}

#[test]
fn the_playground_links_only_to_pages_that_exist() {
    for docs in [true, false] {
        let app = TestApp::start(|c| c.server.docs = docs);
        let get = |path: &str| agent().get(app.url(path)).call().unwrap();
        let page = get("/").body_mut().read_to_string().unwrap();
        let links: Vec<&str> = page.split("<a href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert_eq!(links.contains(&"docs"), docs, "{links:?}");
        for link in links {
            assert_eq!(get(&format!("/{link}")).status(), 200, "{link}");
        }
    }
}
