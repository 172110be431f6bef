//! Requests scores of documents, and sparse vectors, from this program's endpoints on another server. `eval` measures them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::exchange::{Failure, Kind};
use super::{ATTEMPTS, Client, TEXTS_AT_A_TIME};
use layer0::retrieval::Method;
use layer0::retrieval::sparse::SparseVector;
use layer0_tuning::eval::{EmbedFailure, Ranking};

#[derive(Serialize)]
struct RerankRequest<'a> {
    model: &'a str,
    query: &'a str,
    documents: &'a [&'a str],
    method: &'static str,
}

#[derive(Deserialize)]
struct RerankResponse {
    results: Vec<RerankResult>,
}

#[derive(Deserialize)]
struct RerankResult {
    index: usize,
    relevance_score: f32,
}

#[derive(Serialize)]
struct SparseRequest<'a> {
    model: &'a str,
    input: &'a [String],
    input_type: &'static str,
}

#[derive(Deserialize)]
struct SparseResponse {
    data: Vec<SparseEntry>,
}

#[derive(Deserialize)]
struct SparseEntry {
    indices: Vec<u32>,
    values: Vec<f32>,
}

impl Ranking for Client {
    fn rerank(&self, method: Method, query: &str, documents: &[&str]) -> Result<Vec<f32>, EmbedFailure> {
        let body = RerankRequest { model: self.model(), query, documents, method: method.name() };
        let found: RerankResponse = self.post("rerank", &body)?;
        let mut scores = vec![None; documents.len()];
        for RerankResult { index, relevance_score } in found.results {
            if let Some(score) = scores.get_mut(index) {
                *score = Some(relevance_score);
            }
        }
        let scores: Option<Vec<f32>> = scores.into_iter().collect();
        scores.ok_or_else(|| self.unusable("rerank", &format!("no score for some of {} documents", documents.len())))
    }

    fn sparse(&self, texts: &[String], is_query: bool) -> Result<Vec<SparseVector>, EmbedFailure> {
        let mut vectors = Vec::with_capacity(texts.len());
        for input in texts.chunks(TEXTS_AT_A_TIME) {
            let input_type = if is_query { "query" } else { "document" };
            let body = SparseRequest { model: self.model(), input, input_type };
            let found: SparseResponse = self.post("sparse-embeddings", &body)?;
            if found.data.len() != input.len() {
                let problem = format!("{} vectors for {} texts", found.data.len(), input.len());
                return Err(self.unusable("sparse-embeddings", &problem));
            }
            vectors
                .extend(found.data.into_iter().map(|SparseEntry { indices, values }| SparseVector { indices, values }));
        }
        Ok(vectors)
    }
}

impl Client {
    /// Sends a request to another resource of the same API. Repeats it after a failure that may be temporary.
    fn post<T: DeserializeOwned>(&self, resource: &str, body: &impl Serialize) -> Result<T, EmbedFailure> {
        let (address, url) = (beside_embeddings(&self.address, resource), beside_embeddings(&self.url, resource));
        let mut attempt = 0;
        loop {
            let failure = match self.send(&address, &url, body) {
                Ok(answer) => match serde_json::from_slice(&answer.body) {
                    Ok(found) => return Ok(found),
                    Err(problem) => return Err(self.unusable(resource, &problem.to_string())),
                },
                Err(failure) => failure,
            };
            attempt += 1;
            if !matches!(failure.kind, Kind::Overloaded | Kind::Failed) {
                return Err(failure.permanent());
            }
            if attempt == ATTEMPTS {
                return Err(failure.temporary(&format!("it was asked {ATTEMPTS} times")));
            }
            self.pause(&failure, attempt)?;
        }
    }

    fn unusable(&self, resource: &str, problem: &str) -> EmbedFailure {
        let url = beside_embeddings(&self.url, resource);
        Failure::certain(Kind::Final, self.redacted(format!("{url}: answered what cannot be used: {problem}")))
            .permanent()
    }
}

/// Returns the address of another resource beside `.../embeddings`. The address may have a query.
fn beside_embeddings(address: &str, resource: &str) -> String {
    let (path, query) = address.split_once('?').map_or((address, None), |(path, query)| (path, Some(query)));
    let base = path.strip_suffix("embeddings").unwrap_or(path);
    query.map_or_else(|| format!("{base}{resource}"), |query| format!("{base}{resource}?{query}"))
}

#[cfg(test)]
mod tests {
    use super::beside_embeddings;

    #[test]
    fn other_resources_have_the_path_and_the_query_of_the_embeddings() {
        assert_eq!(beside_embeddings("http://h/v1/embeddings", "rerank"), "http://h/v1/rerank");
        assert_eq!(beside_embeddings("http://h/v1/embeddings?key=embeddings", "a"), "http://h/v1/a?key=embeddings");
    }
}
