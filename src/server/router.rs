//! The routes of the server, each registered once together with its OpenAPI description, and the steps that every
//! request passes before and after its handler.

pub mod active;
mod cors;
pub mod paths;
mod scope;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::openai::CreateEmbeddingRequest;
use crate::server::error::ApiError;
use crate::server::observe::access::AccessLog;
use crate::server::observe::peer::Peer;
use crate::server::request::allowed_hosts::AllowedHosts;
use crate::server::request::authorize::KeyGate;
use crate::server::request::context::RequestContext;
use crate::server::request::json;
use crate::server::routes::{
    batches, cohere, docs, embeddings, files, health, metrics, models, ollama, playground, rerank, similarity, sparse,
    tei, tokenize,
};
use crate::server::state::ServerState;
use scope::RequestScope;

/// The described routes that never need an API key. Whether /metrics needs one is the setting
/// `server.metrics_need_key`.
/// Routes without a description (the pages) never need one.
const PUBLIC_ROUTES: [&str; 2] = ["/health", "/ready"];
const METRICS: &str = "/metrics";

/// The header in which a proxy reports the scheme that its client used.
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The HTTP service: answers requests, both for connections and for tests.
#[derive(Clone)]
pub struct Routes {
    routes: Router,
    scope: Arc<RequestScope>,
}

/// Builds all routes of a server.
pub fn router(state: &Arc<ServerState>) -> Routes {
    let server = &state.config.server;
    let described = OpenApiRouter::with_openapi(docs::introduction())
        .routes(routes!(embeddings::create))
        .routes(routes!(embeddings::create_for_engine))
        .routes(routes!(embeddings::create_for_deployment))
        .routes(routes!(models::list))
        .routes(routes!(models::retrieve))
        .routes(routes!(tokenize::create))
        .routes(routes!(similarity::create))
        .routes(routes!(rerank::create))
        .routes(routes!(rerank::create_v2))
        .routes(routes!(sparse::create))
        .routes(routes!(sparse::create_for_tei))
        .routes(routes!(cohere::embed_v2))
        .routes(routes!(cohere::embed_v1))
        .routes(routes!(tei::embed))
        .routes(routes!(tei::info))
        .routes(routes!(ollama::embed))
        .routes(routes!(ollama::embeddings))
        .routes(routes!(ollama::tags))
        .routes(routes!(ollama::show))
        .routes(routes!(ollama::version))
        .routes(routes!(files::create, files::list))
        .routes(routes!(files::retrieve, files::delete))
        .routes(routes!(files::content))
        .routes(routes!(batches::create, batches::list))
        .routes(routes!(batches::retrieve))
        .routes(routes!(batches::cancel))
        .routes(routes!(health::health))
        .routes(routes!(health::ready));
    let described = if server.metrics { described.routes(routes!(metrics::metrics)) } else { described };
    let (mut routes, description) = described.split_for_parts();

    let mut paths: Vec<String> = description.paths.paths.keys().cloned().collect();
    let is_public = |path: &str| PUBLIC_ROUTES.contains(&path) || (path == METRICS && !server.metrics_need_key);
    let protected: Vec<String> = paths.iter().filter(|path| !is_public(path)).cloned().collect();
    let has_playground = server.playground;
    if server.docs {
        let description = docs::document(description, if state.keys.is_empty() { &[] } else { &protected });
        let describe = async |State(state): State<Arc<ServerState>>, context: RequestContext| {
            docs::description(description, &state, &context)
        };
        routes = routes
            .route(docs::DESCRIPTION, get(describe))
            .route(docs::PAGE, get(async move || docs::page(has_playground)))
            .route(docs::SCRIPT, get(docs::script));
        paths.extend([docs::DESCRIPTION, docs::PAGE, docs::SCRIPT].map(str::to_owned));
    }
    if server.playground {
        routes = routes.merge(playground::routes(server.docs));
        paths.extend(playground::PATHS.map(str::to_owned));
    }
    Routes::new(routes, state, &paths, protected)
}

impl Routes {
    fn new(
        routes: Router<Arc<ServerState>>,
        state: &Arc<ServerState>,
        paths: &[String],
        protected: Vec<String>,
    ) -> Self {
        let pages = [docs::PAGE, playground::PAGE].into_iter().filter(|page| paths.iter().any(|path| path == page));
        let scope = Arc::new(RequestScope {
            pages: pages.collect(),
            log: AccessLog::new(Arc::clone(&state.process.metrics), paths, &state.registry, state.config.log.access),
            hosts: AllowedHosts::new(state),
            gate: KeyGate::new(state, protected),
            state: Arc::clone(state),
        });
        let known: Arc<[String]> = paths.into();
        let no_such_path =
            async move |State(state): State<Arc<ServerState>>, context: RequestContext, request: Request| {
                let uri = context.uri(&request);
                let path = uri.path();
                let prefix = &state.config.server.path_prefix;
                let advice = paths::advice(path, &base_url(&state, uri, request.headers()), prefix, &known);
                ApiError::no_such_path(request.method(), path, advice.as_deref())
            };
        let routes = routes
            .fallback(no_such_path)
            .method_not_allowed_fallback(async |context: RequestContext, request: Request| {
                ApiError::method_not_allowed(request.method(), context.uri(&request).path())
            })
            .with_state(Arc::clone(state))
            .layer(middleware::from_fn_with_state(Arc::clone(&scope), RequestScope::layer));
        let routes = match cors::layer(&state.config.server.cors_origins) {
            Some(cors) => routes.layer(cors),
            None => routes,
        };
        Self { routes, scope }
    }

    /// Returns the state that these routes use.
    pub fn state(&self) -> &Arc<ServerState> {
        &self.scope.state
    }

    /// Answers a request from `peer`. Almost all requests are POST /v1/embeddings and do not come from a browser; these
    /// skip axum's router and CORS.
    pub async fn answer(self, request: Request, peer: Option<Peer>) -> Response<Body> {
        let scope = Arc::clone(&self.scope);
        let mut response = self.route(request, peer).await;
        if scope.state.process.draining.load(Ordering::Relaxed) {
            // The next request must go to another server. Were the connection closed only later, the client might
            // already have sent that request on it.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Returns whether even a request with an empty body would be refused, because the in-flight budget is used up.
    pub fn is_full(&self) -> bool {
        self.scope.state.process.admission.is_full(0, self.scope.state.config.server.max_in_flight.0)
    }

    /// Returns the response to a request with a body of `length` bytes, if [`Routes::answer`] is certain to refuse the
    /// request without reading its body because of the in-flight budget. The response is the same, but costs less.
    pub fn refuse<B>(&self, request: &Request<B>, length: u64, peer: Peer) -> Option<Response<Body>> {
        let (state, headers) = (&self.scope.state, request.headers());
        let server = &state.config.server;
        let direct = request.method() == Method::POST
            && paths::route(request.uri().path(), &server.path_prefix) == embeddings::PATH;
        let refused = direct
            && !headers.contains_key(ORIGIN)
            && length <= server.max_body.0
            && json::check_headers::<CreateEmbeddingRequest>(headers).is_ok()
            && !state.process.draining.load(Ordering::Relaxed)
            && state.process.admission.is_full(length, server.max_in_flight.0);
        refused.then(|| self.scope.refuse(embeddings::PATH, RequestContext::new(state, Some(peer)), request))
    }

    async fn route(self, mut request: Request, peer: Option<Peer>) -> Response<Body> {
        let mut context = RequestContext::new(&self.scope.state, peer);
        let mut path = paths::route(request.uri().path(), &self.scope.state.config.server.path_prefix);
        if path == playground::PAGE && request.method() == Method::POST {
            // Clients of text-embeddings-inference that know only the address of the server send their requests there.
            path = Cow::from(tei::EMBED);
        }
        let direct = request.method() == Method::POST && path == embeddings::PATH;
        if direct && !request.headers().contains_key(ORIGIN) {
            return self.scope.answer(Some(embeddings::PATH), context, request, embeddings::direct).await;
        }
        if matches!(*request.method(), Method::GET | Method::HEAD)
            && let Some(page) = self.scope.pages.iter().find(|page| **page == path)
            && let Some(location) = paths::redirect(page, request.uri().path())
        {
            let response = Redirect::temporary(&location).into_response();
            return self.scope.answer(Some(page), context, request, move |_, _| std::future::ready(response)).await;
        }
        if path != request.uri().path()
            && let Some(uri) = with_path(request.uri(), &path)
        {
            context.original_uri = Some(std::mem::replace(request.uri_mut(), uri));
        }
        request.extensions_mut().insert(context);
        match TowerToHyperService::new(self.routes).call(request).await {
            Ok(response) => response,
        }
    }
}

/// Returns `uri` with its path replaced.
fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    match uri.query() {
        Some(query) => format!("{path}?{query}").parse().ok(),
        None => path.parse().ok(),
    }
}

/// Returns the base URL that an OpenAI client should use, with the host that this request was sent to.
fn base_url(state: &ServerState, uri: &Uri, headers: &HeaderMap) -> String {
    const LONGEST_HOST: usize = 255;
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = uri.authority().map(Authority::as_str).or_else(|| header(HOST));
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    let host = host.filter(|host| (1..=LONGEST_HOST).contains(&host.len()) && host.chars().all(is_host));
    let tls = state.config.server.tls_cert.is_some() || header(X_FORWARDED_PROTO) == Some("https");
    let (scheme, host) = (if tls { "https" } else { "http" }, host.unwrap_or("HOST:PORT"));
    format!("{scheme}://{host}{}/v1", state.config.server.path_prefix)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use axum::routing::post;
    use bytes::Bytes;
    use http_body_util::{BodyExt, StreamBody};
    use hyper::body::Frame;

    use super::*;
    use crate::config::Config;
    use crate::config::units::{ByteCount, Seconds};
    use crate::keys::ApiKeys;
    use crate::server::request::json::Json;
    use crate::workers;

    async fn ask(routes: &Routes, path: &str) -> (Response<()>, serde_json::Value) {
        send(routes, path, Body::empty()).await
    }

    async fn send(routes: &Routes, path: &str, body: Body) -> (Response<()>, serde_json::Value) {
        let request = Request::builder().method("POST").uri(path).body(body).unwrap();
        let (head, body) = routes.clone().answer(request, None).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (Response::from_parts(head, ()), serde_json::from_slice(&body).unwrap())
    }

    fn state(change: impl FnOnce(&mut Config)) -> Arc<ServerState> {
        let mut config = Config::default();
        change(&mut config);
        Arc::new(ServerState::new(config).unwrap())
    }

    #[tokio::test]
    async fn a_panic_fails_only_its_request_and_is_counted() {
        async fn on_a_worker(State(state): State<Arc<ServerState>>) -> Result<Response<Body>, ApiError> {
            crate::server::response::stream::respond(&state.process.workers, 3, Duration::ZERO, |_, _| {
                panic!("on a worker")
            })
            .await
        }
        let routes = Router::new()
            .route("/worker", post(on_a_worker))
            .route("/handler", post(async || -> &'static str { panic!("in the handler") }))
            .route("/fine", post(async || "{}"));
        let state = state(|_| {});
        let routes = Routes::new(routes, &state, &[], Vec::new());
        for path in ["/worker", "/handler"] {
            let before = workers::panics();
            let (head, body) = ask(&routes, path).await;
            assert_eq!((head.status().as_u16(), body["error"]["type"].as_str()), (500, Some("server_error")), "{path}");
            assert!(!body.to_string().contains("panic") && head.headers().contains_key("x-request-id"), "{body}");
            assert!(workers::panics() > before, "{path}");
            assert_eq!(ask(&routes, "/fine").await.0.status().as_u16(), 200);
        }
        let metrics = metrics::text(&state).unwrap();
        assert!(metrics.contains("embedding_server_errors_total{code=\"internal_error\"} 2"), "{metrics}");
        let panics = metrics.lines().find_map(|line| line.strip_prefix("embedding_server_panics_total "));
        assert!(panics.unwrap().parse::<u64>().unwrap() >= 2, "{metrics}");
    }

    #[tokio::test]
    async fn a_request_over_the_time_limit_is_dropped_with_the_right_error() {
        async fn on_the_server(context: RequestContext) {
            context.weight.unwrap().received().unwrap();
            std::future::pending::<()>().await;
        }
        async fn on_the_client(_: Json<CreateEmbeddingRequest>) {}
        let routes = Router::new().route("/server", post(on_the_server)).route("/client", post(on_the_client));
        let state = state(|c| c.server.request_timeout = Seconds(std::time::Duration::from_millis(50)));
        let routes = Routes::new(routes, &state, &[], Vec::new());
        for (path, status, code) in [("/server", 503, "timeout"), ("/client", 408, "request_timeout")] {
            let body = Body::new(StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>()));
            let (head, body) = send(&routes, path, body).await;
            assert_eq!((head.status().as_u16(), body["error"]["code"].as_str()), (status, Some(code)), "{body}");
            assert_eq!(head.headers().contains_key("retry-after"), status == 503);
        }
        assert_eq!(state.process.admission.in_flight(), 0);
    }
    #[tokio::test]
    async fn a_request_that_is_refused_early_gets_the_response_that_it_would_get_anyway() {
        const MAX: u64 = 10_000;
        let state = state(|c| {
            c.server.max_in_flight = ByteCount(MAX);
            c.server.max_body = ByteCount(5000);
            c.server.api_keys = ApiKeys::new(["secret-key-1".to_owned()]);
        });
        let (routes, peer) = (router(&state), Peer::Address(([127, 0, 0, 1], 1).into()));
        let other = state.process.admission.enter(MAX, Duration::MAX);
        let request = |method: &str, path: &str, length: usize, fields: &[(&str, &str)]| {
            let request = Request::builder().method(method).uri(path).header("x-request-id", "id");
            let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            request.body(Body::from("x".repeat(length))).unwrap()
        };
        let key = ("authorization", "Bearer secret-key-1");
        let common = || request("POST", embeddings::PATH, 3000, &[key]);
        assert!(routes.refuse(&common(), 3000, peer).is_none(), "nothing is in flight");
        other.arrived(MAX).unwrap();
        let answer = async |request| {
            let (head, body) = routes.clone().answer(request, Some(peer)).await.into_parts();
            (head.status, head.headers, body.collect().await.unwrap().to_bytes())
        };
        for (path, fields, status) in [
            (embeddings::PATH, vec![key], 429),
            ("/embeddings/", vec![key, ("content-type", "application/json")], 429),
            (embeddings::PATH, vec![], 401),
            (embeddings::PATH, vec![("api-key", "other")], 401),
        ] {
            let request = || request("POST", path, 3000, &fields);
            let mut early = None;
            while early.is_none() {
                // A refusal follows a search for room, whose result is used only for a short time.
                answer(common()).await;
                early = routes.refuse(&request(), 3000, peer);
            }
            let (head, body) = early.unwrap().into_parts();
            let early = (head.status, head.headers, body.collect().await.unwrap().to_bytes());
            assert_eq!(early, answer(request()).await);
            assert_eq!(early.0.as_u16(), status);
        }
        for (request, length) in [
            (request("GET", embeddings::PATH, 0, &[key]), 0),
            (request("POST", "/v1/tokenize", 3000, &[key]), 3000),
            (request("POST", embeddings::PATH, 3000, &[key, ("origin", "http://x")]), 3000),
            (request("POST", embeddings::PATH, 3000, &[key, ("content-type", "text/plain")]), 3000),
            (request("POST", embeddings::PATH, 6000, &[key]), 6000),
        ] {
            answer(common()).await;
            assert!(routes.refuse(&request, length, peer).is_none(), "{request:?}");
        }
    }
}
