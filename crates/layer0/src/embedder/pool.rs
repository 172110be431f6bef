//! Computes the vectors of texts and of single tokens.

use super::{Embedder, PooledTokens};
use crate::error::{Damage, EmbedError};
use crate::pooling::{self, normalize};
use layer0_tokenizers::yield_point::{Undisturbed, YieldPoint};

impl Embedder {
    /// Computes the vectors of `texts` and writes them to `out`, whose shape is `[texts, dimensions]`. A text without
    /// tokens gets the first unit vector.
    ///
    /// # Errors
    /// Returns an error if a device fails, the table's file was changed, or a vector cannot be represented in f32.
    pub fn pool(&self, texts: &[PooledTokens], dimensions: usize, out: &mut [f32]) -> Result<(), EmbedError> {
        self.pool_in_steps(0, texts, dimensions, out, &Undisturbed)
    }

    /// Computes vectors like [`Embedder::pool`], for texts that may take long. `first` is the index of the first text
    /// for errors. The yield point `at` is reached about every millisecond.
    ///
    /// # Errors
    /// Returns the errors of [`Embedder::pool`], and an error if `at` stops the work.
    pub fn pool_in_steps(
        &self,
        first: usize,
        texts: &[PooledTokens],
        dimensions: usize,
        out: &mut [f32],
        at: &dyn YieldPoint,
    ) -> Result<(), EmbedError> {
        let ids: Vec<&[u32]> = texts.iter().map(PooledTokens::ids).collect();
        self.pooling.mean_in_steps(&ids, dimensions, out, at)?;
        if let Some(damage) = self.damage() {
            return Err(damage);
        }
        for (input, (text, vector)) in texts.iter().zip(out.chunks_mut(dimensions.max(1))).enumerate() {
            if text.is_empty() {
                pooling::first_unit_vector(vector);
                continue;
            }
            let finite =
                if self.conventions.normalize { normalize(vector).is_ok() } else { pooling::is_finite(vector) };
            if !finite {
                self.pool_exactly(first + input, text, vector, at)?;
            }
        }
        Ok(())
    }

    /// As [`Embedder::pool_in_steps`], but scales every vector to length 1, whatever the settings are, so that dot products are cosines.
    ///
    /// # Errors
    /// Returns the errors of [`Embedder::pool_in_steps`].
    pub fn unit_vectors(
        &self,
        first: usize,
        texts: &[PooledTokens],
        dimensions: usize,
        out: &mut [f32],
        at: &dyn YieldPoint,
    ) -> Result<(), EmbedError> {
        self.pool_in_steps(first, texts, dimensions, out, at)?;
        for vector in out.chunks_mut(dimensions.max(1)) {
            // Pooled vectors are finite, so scaling them cannot fail.
            let _ = normalize(vector);
        }
        Ok(())
    }

    /// Computes the vector of a text whose sum in f32 is not finite, with higher precision.
    fn pool_exactly(
        &self,
        input: usize,
        text: &PooledTokens,
        vector: &mut [f32],
        at: &dyn YieldPoint,
    ) -> Result<(), EmbedError> {
        let Some(exact) = self.pooling.exact_mean(text.ids(), vector.len(), at)? else {
            return Err(EmbedError::NotFinite { input });
        };
        if exact.iter().all(|x| x.is_finite()) {
            return pooling::rounded(&exact, self.conventions.normalize, vector)
                .map_err(|_| EmbedError::TooLarge { input });
        }
        // Every row was finite when the table was loaded, so the file must have changed.
        self.damage.get_or_init(|| Damage::NotFinite);
        Err(self.damage().unwrap_or(EmbedError::NotFinite { input }))
    }

    /// Computes the vector of each token alone and writes it to `out`, whose shape is `[tokens, table_dimensions]` (see
    /// [`Embedder::table_dimensions`]). The vectors are not scaled to length 1, because their length expresses the
    /// importance of the token. Tokens without a row get zeros. `out` may be longer than necessary.
    ///
    /// # Errors
    /// Returns the same errors as [`Embedder::pool_in_steps`].
    pub fn token_vectors(&self, ids: &[u32], out: &mut [f32], at: &dyn YieldPoint) -> Result<(), EmbedError> {
        let texts: Vec<&[u32]> = ids.iter().map(std::slice::from_ref).collect();
        self.pooling.mean_in_steps(&texts, self.table_dimensions, out, at)?;
        self.damage().map_or(Ok(()), Err)
    }

    /// Prepares to compare the vectors of single tokens with those of `ids`, which are `units` at length 1. Returns `None` if the cosines
    /// cannot be computed from the rows as they are stored: they then follow from [`Embedder::token_vectors`].
    ///
    /// # Errors
    /// Returns an error if the table's file was changed.
    #[doc(hidden)]
    pub fn comparison(&self, ids: &[u32], units: &[f32]) -> Result<Option<pooling::Comparison<'_>>, EmbedError> {
        let comparison = self.pooling.comparison(ids, units);
        self.damage().map_or(Ok(comparison), Err)
    }

    /// Returns the tokens of a text without those that the tokenizer's template adds around the text (BOS, EOS).
    pub fn without_template<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        let template = self.template.get_or_init(|| {
            let mut ids = Vec::new();
            // A tokenizer that fails on an empty text is treated as one without a template.
            let _ = self.tokenizer.implementation.encode("", self.conventions.special_tokens, &mut ids);
            ids.retain(|&id| (id as usize) < self.rows && Some(id) != self.conventions.left_out);
            ids
        });
        let (mut ids, mut template) = (ids, template.as_slice());
        while let (Some((first, rest)), Some((expected, after))) = (ids.split_first(), template.split_first()) {
            if first != expected {
                break;
            }
            (ids, template) = (rest, after);
        }
        while let (Some((last, rest)), Some((expected, before))) = (ids.split_last(), template.split_last()) {
            if last != expected {
                break;
            }
            (ids, template) = (rest, before);
        }
        ids
    }

    /// Returns the vectors of `texts`. All work is done on the calling thread.
    ///
    /// # Errors
    /// Returns an error if a text cannot be tokenized or has more than `max_input_tokens` tokens, or if the device
    /// fails.
    pub fn embed<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let texts = texts.iter().enumerate();
        let tokens: Vec<PooledTokens> = texts
            .map(|(index, text)| self.pooled(index, self.encode(index, text.as_ref(), &Undisturbed)?))
            .collect::<Result<_, _>>()?;
        let dimensions = self.dimensions();
        if self.wants_whole_batches() {
            let mut vectors = vec![0.0; tokens.len() * dimensions];
            self.pool(&tokens, dimensions, &mut vectors)?;
            return Ok(vectors.chunks(dimensions.max(1)).map(<[f32]>::to_vec).collect());
        }
        let vector = |tokens| {
            let mut vector = vec![0.0; dimensions];
            self.pool(std::slice::from_ref(tokens), dimensions, &mut vector).map(|()| vector)
        };
        tokens.iter().map(vector).collect()
    }
}
