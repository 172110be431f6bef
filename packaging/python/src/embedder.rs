//! The class `NativeEmbedder`: a loaded model and its operations. Vectors leave it as bytes of f32, which numpy reads without a copy.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use embedding_server::builtin::{BUILTIN, open_checkpoint};
use embedding_server::model_error::ModelError;
use layer0::embedder::Settings;
use layer0::location::Location;
use layer0::pooling::dot;
use layer0::progress::Silent;
use layer0::retrieval::sparse::{DEFAULT_NEIGHBORS, MAX_NEIGHBORS, SparseEncoder, SparseVector};
use layer0::retrieval::{self, Method, TokenizedText};
use layer0::yield_point::Undisturbed;
use layer0::{EmbedError, Embedder, PooledTokens};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict};

use crate::errors::{embed_error, load_error, model_error};
use crate::fork::working;
use crate::parallel::{each, units};
use crate::settings::Arguments;
use crate::texts::{Text, items, texts};

/// The number of units of work between two checks for Ctrl-C.
const UNITS_BETWEEN_SIGNALS: usize = 256;
/// The number of texts that a device pools at a time.
const DEVICE_BATCH: usize = 4096;

/// A loaded model.
#[pyclass(frozen, module = "embedding_server._native")]
pub struct NativeEmbedder {
    embedder: Arc<Embedder>,
    sparse: OnceLock<SparseEncoder<Arc<Embedder>>>,
    threads: Option<usize>,
    warnings: Vec<String>,
}

/// The token IDs and the pieces of a text.
type Tokens = (Vec<u32>, Vec<String>);
/// A document's index, its score, and the span that matches best, in code points.
type Ranked = (usize, f32, Option<(usize, usize)>);

#[pymethods]
impl NativeEmbedder {
    #[new]
    #[pyo3(signature = (path, settings))]
    fn new(py: Python<'_>, path: Option<PathBuf>, settings: &Bound<'_, PyDict>) -> PyResult<Self> {
        let settings = Arguments(settings);
        let (threads, load_threads) = (settings.count("threads")?, settings.count("load_threads")?);
        let config = settings.config(path.unwrap_or_else(|| PathBuf::from(BUILTIN)))?;
        py.detach(|| {
            let _working = working();
            let overrides = config.overrides();
            let directory = Location::of(&config.path).directory(&overrides, &Silent).map_err(ModelError::from)?;
            let checkpoint = open_checkpoint(&directory, &overrides)?;
            let warnings = checkpoint.warnings.iter().map(ToString::to_string).collect();
            let mut settings = config.settings();
            settings.load_threads = load_threads.unwrap_or(Settings::default().load_threads);
            let embedder = Arc::new(Embedder::new(checkpoint, settings).map_err(ModelError::from)?);
            Ok(Self { embedder, sparse: OnceLock::new(), threads, warnings })
        })
        .map_err(|error: ModelError| match &error {
            ModelError::Load(error) => load_error(py, error),
            error => model_error(py, error),
        })
    }

    /// The length of vectors.
    #[getter]
    fn dimensions(&self) -> usize {
        self.embedder.dimensions()
    }

    /// The number of columns of the table.
    #[getter]
    fn max_dimensions(&self) -> usize {
        self.embedder.max_dimensions()
    }

    /// The number of rows of the table.
    #[getter]
    fn vocabulary_size(&self) -> usize {
        self.embedder.rows()
    }

    /// The fingerprint of the vectors.
    #[getter]
    fn fingerprint(&self) -> String {
        self.embedder.fingerprint().to_string()
    }

    /// The name of the device.
    #[getter]
    fn device(&self) -> String {
        self.embedder.device()
    }

    /// The remarks of the loader about the checkpoint.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// Returns the vectors of the inputs as bytes of f32, `[inputs, dimensions]`.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyAny>,
        dimensions: Option<u64>,
    ) -> PyResult<Bound<'py, PyByteArray>> {
        let items = items(inputs)?;
        let texts = texts(&items)?;
        let width = self.width(py, dimensions)?;
        filled(py, texts.len() * width, |out| self.vectors(py, &texts, width, false, out))
    }

    /// Returns the cosine similarities of two lists of inputs as bytes of f32, `[left, right]`.
    fn similarity<'py>(
        &self,
        py: Python<'py>,
        left: &Bound<'py, PyAny>,
        right: &Bound<'py, PyAny>,
        dimensions: Option<u64>,
    ) -> PyResult<Bound<'py, PyByteArray>> {
        let (left, right) = (items(left)?, items(right)?);
        let (left, right) = (texts(&left)?, texts(&right)?);
        let width = self.width(py, dimensions)?;
        let (mut rows, mut columns) = (vec![0.0; left.len() * width], vec![0.0; right.len() * width]);
        self.vectors(py, &left, width, true, &mut rows)?;
        self.vectors(py, &right, width, true, &mut columns)?;
        filled(py, left.len() * right.len(), |out| {
            let rows = rows.chunks(width).zip(out.chunks_mut(right.len().max(1))).collect();
            let row = |(row, out): (&[f32], &mut [f32])| {
                for (column, out) in columns.chunks(width).zip(out) {
                    *out = dot(row, column).clamp(-1.0, 1.0);
                }
                Ok::<_, EmbedError>(())
            };
            py.detach(|| each(rows, self.threads, row)).map(drop).map_err(|error| embed_error(py, &error))
        })
    }

    /// Returns the tokens of each input that are pooled.
    fn tokenize(&self, py: Python<'_>, inputs: &Bound<'_, PyAny>) -> PyResult<Vec<Tokens>> {
        let items = items(inputs)?;
        let texts = texts(&items)?;
        let of_token = |&id: &u32| {
            let mut piece = String::new();
            self.embedder.pieces().write(id, &mut piece);
            piece
        };
        let tokens = self.tokens(py, &texts, 0)?;
        Ok(tokens.iter().map(|tokens| (tokens.ids().to_vec(), tokens.ids().iter().map(of_token).collect())).collect())
    }

    /// Returns the documents that are most relevant to the query, the best first.
    fn rerank(
        &self,
        py: Python<'_>,
        query: &Bound<'_, PyAny>,
        documents: &Bound<'_, PyAny>,
        top_n: Option<usize>,
        method: &str,
        spans: bool,
    ) -> PyResult<Vec<Ranked>> {
        let method = Method::ALL.into_iter().find(|known| known.name() == method).ok_or_else(|| {
            let known = Method::ALL.map(Method::name).join(", ");
            PyValueError::new_err(format!("method = {method:?} is unknown: expected one of {known}"))
        })?;
        let mut all = vec![query.clone()];
        all.extend(items(documents)?);
        let texts = texts(&all)?;
        let tokens = self.tokens(py, &texts, 0)?;
        py.detach(|| {
            let _working = working();
            self.ranked(&texts, &tokens, top_n.unwrap_or(usize::MAX), method, spans)
        })
        .map_err(|error| embed_error(py, &error))
    }

    /// Returns a sparse vector for each input as the bytes of its u32 indices and of its f32 values. `neighbors` is for queries.
    #[allow(clippy::type_complexity)]
    fn sparse<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyAny>,
        is_query: bool,
        neighbors: Option<usize>,
    ) -> PyResult<Vec<(Bound<'py, PyByteArray>, Bound<'py, PyByteArray>)>> {
        let neighbors = neighbors.unwrap_or(DEFAULT_NEIGHBORS);
        if neighbors > MAX_NEIGHBORS {
            return Err(PyValueError::new_err(format!(
                "expand = {neighbors} is too large: expected at most {MAX_NEIGHBORS}"
            )));
        }
        let items = items(inputs)?;
        let texts = texts(&items)?;
        let tokens = self.tokens(py, &texts, 0)?;
        let vectors = py.detach(|| {
            let encoder = {
                let _working = working();
                self.sparse.get_or_init(|| SparseEncoder::new(Arc::clone(&self.embedder)))
            };
            each(units(texts.iter().map(Text::bytes)), self.threads, |unit| {
                let vector = |tokens| match is_query {
                    true => encoder.query(tokens, neighbors, &Undisturbed),
                    false => encoder.document(tokens, &Undisturbed),
                };
                tokens.get(unit).unwrap_or_default().iter().map(vector).collect::<Result<Vec<_>, _>>()
            })
        });
        let bytes = |SparseVector { indices, values }: &SparseVector| {
            (PyByteArray::new(py, bytemuck::cast_slice(indices)), PyByteArray::new(py, bytemuck::cast_slice(values)))
        };
        Ok(vectors.map_err(|error| embed_error(py, &error))?.iter().flatten().map(bytes).collect())
    }
}

impl NativeEmbedder {
    fn width(&self, py: Python<'_>, dimensions: Option<u64>) -> PyResult<usize> {
        self.embedder.resolve_dimensions(dimensions).map_err(|error| embed_error(py, &error))
    }

    /// Computes the vectors of `texts`, scaled to length 1 if `unit` is set, whatever the settings are, and writes them to `out`.
    fn vectors(&self, py: Python<'_>, texts: &[Text<'_>], width: usize, unit: bool, out: &mut [f32]) -> PyResult<()> {
        if self.embedder.wants_whole_batches() {
            return self.vectors_on_device(py, texts, width, unit, out);
        }
        let (mut jobs, mut rest) = (Vec::new(), out);
        for range in units(texts.iter().map(Text::bytes)) {
            let (out, after) = rest.split_at_mut(range.len() * width);
            jobs.push((range, out));
            rest = after;
        }
        while !jobs.is_empty() {
            let later = jobs.split_off(jobs.len().min(UNITS_BETWEEN_SIGNALS));
            let job = |(range, out): (Range<usize>, &mut [f32])| self.unit_of_vectors(texts, range, width, unit, out);
            py.detach(|| each(jobs, self.threads, job)).map_err(|error| embed_error(py, &error))?;
            py.check_signals()?;
            jobs = later;
        }
        Ok(())
    }

    /// Computes the vectors of a range of `texts`.
    fn unit_of_vectors(
        &self,
        texts: &[Text<'_>],
        range: Range<usize>,
        width: usize,
        unit: bool,
        out: &mut [f32],
    ) -> Result<(), EmbedError> {
        for ((index, text), out) in range.clone().zip(texts.get(range).unwrap_or_default()).zip(out.chunks_mut(width)) {
            let tokens = self.embedder.tokens(index, &text.to_input())?;
            self.pool(index, std::slice::from_ref(&tokens), width, unit, out)?;
        }
        Ok(())
    }

    fn vectors_on_device(
        &self,
        py: Python<'_>,
        texts: &[Text<'_>],
        width: usize,
        unit: bool,
        out: &mut [f32],
    ) -> PyResult<()> {
        for ((batch, out), first) in
            texts.chunks(DEVICE_BATCH).zip(out.chunks_mut(DEVICE_BATCH * width)).zip((0..).step_by(DEVICE_BATCH))
        {
            let tokens = self.tokens(py, batch, first)?;
            let pooled = py.detach(|| {
                let _working = working();
                self.pool(first, &tokens, width, unit, out)
            });
            pooled.map_err(|error| embed_error(py, &error))?;
        }
        Ok(())
    }

    fn pool(
        &self,
        first: usize,
        tokens: &[PooledTokens],
        width: usize,
        unit: bool,
        out: &mut [f32],
    ) -> Result<(), EmbedError> {
        match unit {
            true => self.embedder.unit_vectors(first, tokens, width, out, &Undisturbed),
            false => self.embedder.pool_in_steps(first, tokens, width, out, &Undisturbed),
        }
    }

    /// Returns the tokens of the texts. `first` is the index of the first text for errors.
    fn tokens(&self, py: Python<'_>, texts: &[Text<'_>], first: usize) -> PyResult<Vec<PooledTokens>> {
        let (mut all, mut left) = (Vec::with_capacity(texts.len()), units(texts.iter().map(Text::bytes)));
        while !left.is_empty() {
            let later = left.split_off(left.len().min(UNITS_BETWEEN_SIGNALS));
            let tokens = |unit: Range<usize>| {
                let texts = unit.clone().zip(texts.get(unit).unwrap_or_default());
                texts
                    .map(|(index, text)| self.embedder.tokens(first + index, &text.to_input()))
                    .collect::<Result<Vec<_>, _>>()
            };
            let done = py.detach(|| each(left, self.threads, tokens)).map_err(|error| embed_error(py, &error))?;
            all.extend(done.into_iter().flatten());
            py.check_signals()?;
            left = later;
        }
        Ok(all)
    }

    /// Ranks the texts after the first one, which is the query.
    fn ranked(
        &self,
        texts: &[Text<'_>],
        tokens: &[PooledTokens],
        top_n: usize,
        method: Method,
        spans: bool,
    ) -> Result<Vec<Ranked>, EmbedError> {
        let all: Vec<_> =
            texts.iter().zip(tokens).map(|(text, tokens)| TokenizedText { text: text.text(), tokens }).collect();
        let Some((query, documents)) = all.split_first() else { return Ok(Vec::new()) };
        let (scores, matches) = retrieval::scores_and_matches(&self.embedder, *query, documents, method, &Undisturbed)?;
        let mut ranked: Vec<Ranked> =
            scores.into_iter().enumerate().map(|(index, score)| (index, score, None)).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(top_n);
        if spans {
            let matches = match matches {
                Some(matches) => matches,
                None => retrieval::token_matches(&self.embedder, *query, documents, &Undisturbed)?,
            };
            for (index, _, span) in &mut ranked {
                let text = documents.get(*index).map_or("", |document| document.text);
                let found = retrieval::best_span(&self.embedder, &matches, text, &Undisturbed)?;
                let code_points = |bytes: Range<usize>| text.get(bytes).map_or(0, |text| text.chars().count());
                *span = found.map(|found| {
                    let start = code_points(0..found.start);
                    (start, start + code_points(found))
                });
            }
        }
        Ok(ranked)
    }
}

/// Returns the bytes of `count` numbers that `fill` writes.
fn filled<'py>(
    py: Python<'py>,
    count: usize,
    fill: impl FnOnce(&mut [f32]) -> PyResult<()>,
) -> PyResult<Bound<'py, PyByteArray>> {
    PyByteArray::new_with(py, count * size_of::<f32>(), |bytes| {
        match bytemuck::try_cast_slice_mut(bytes) {
            Ok(out) => fill(out),
            // Python's allocator aligns memory to 8 bytes at least, but an empty object has none of its own.
            Err(_) => {
                let mut out = vec![0.0; count];
                fill(&mut out)?;
                bytes.copy_from_slice(bytemuck::cast_slice(&out));
                Ok(())
            }
        }
    })
}
