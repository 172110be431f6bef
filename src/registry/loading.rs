//! Loads the models of a registry, and replaces their tokenizers by faster ones that take longer to load.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinSet;

use super::{RegisteredModel, Registry};
use crate::model_error::ModelError;
use crate::workers::Workers;
use layer0::embedder::Embedder;
use layer0_tokenizers::choose::{Choice, Search};

/// Models that are being served while a faster tokenizer for them can still be loaded. See
/// [`PendingTokenizers::load`].
#[must_use]
pub struct PendingTokenizers(Vec<(Arc<RegisteredModel>, Search)>);

impl Registry {
    /// Loads the models that are not loaded yet, each on its own thread. A model is published once the worker threads
    /// have warmed up its tokenizer. The result loads faster tokenizers in the background ([`PendingTokenizers::load`]).
    ///
    /// # Errors
    /// The error of the first model that cannot be loaded.
    pub async fn load(&self, workers: &Workers) -> Result<PendingTokenizers, ModelError> {
        let mut pending_tokenizers = Vec::new();
        let mut loads = JoinSet::new();
        let mut ids = HashMap::new();
        for entry in self.models().iter().filter(|entry| entry.embedder().is_none()) {
            let loading = Arc::clone(entry);
            let task = loads.spawn_blocking(move || loading.load().map(|loaded| (loading, loaded)));
            ids.insert(task.id(), entry.id());
        }
        while let Some(loaded) = loads.join_next().await {
            let (entry, (embedder, search)) = loaded.unwrap_or_else(|panic| {
                let id = ids.get(&panic.id()).copied().unwrap_or_default();
                Err(ModelError::Panicked { id: id.to_owned(), panic: panic.to_string() })
            })?;
            warm_up(workers, embedder.choice()).await;
            pending_tokenizers.extend(search.map(|search| (Arc::clone(&entry), search)));
            entry.publish(embedder);
        }
        Ok(PendingTokenizers(pending_tokenizers))
    }
}

impl PendingTokenizers {
    /// Replaces the tokenizers of models by faster ones that take longer to load: one model after the other, on one
    /// background thread, which holds `turn`. A model that is no longer wanted is skipped.
    pub async fn load<W>(self, workers: &Workers, turn: &Arc<Mutex<()>>, is_wanted: W)
    where
        W: Fn(&Weak<Embedder>) -> bool + Clone + Send + 'static,
    {
        for (entry, search) in self.0 {
            let turn = Arc::clone(turn).lock_owned().await;
            let Some(embedder) = entry.embedder() else { continue };
            let (is_wanted, model) = (is_wanted.clone(), Arc::downgrade(embedder));
            let (found, choice) = oneshot::channel();
            // This is not a thread of the runtime, because the runtime's shutdown would wait for it.
            let thread = std::thread::Builder::new().name("tokenizer".to_owned());
            let started = thread.spawn(move || {
                let _turn = turn;
                found.send(search.run_while(|| is_wanted(&model)).map(Arc::new))
            });
            let (Ok(_), Ok(Some(choice))) = (started, choice.await) else { continue };
            warm_up(workers, Arc::clone(&choice)).await;
            let replaced = embedder.adopt(Arc::clone(&choice));
            let before = replaced.implementation.name();
            // The reference tokenizer's hash maps take a while to free, so they are freed off this thread.
            tokio::task::spawn_blocking(move || drop(replaced));
            let name = choice.implementation.name();
            match choice.remark() {
                None if name == before => {}
                None => tracing::info!(model = entry.id(), tokenizer = name, "tokenizer replaced by a faster one"),
                Some(remark) => tracing::info!(model = entry.id(), tokenizer = name, "{remark}"),
            }
        }
    }
}

/// Calls the tokenizer once on each worker thread, because a thread's first call is slow. Only as many threads are
/// warmed up as can run at the same time: the others would only delay the first response.
async fn warm_up(workers: &Workers, choice: Arc<Choice>) {
    let mut warming = workers.on_each_thread(move |_| choice.warm());
    while warming.next().await.is_some() {}
}
