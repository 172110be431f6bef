//! Loads the models of a registry.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::Registry;
use crate::model_error::ModelError;
use crate::workers::Workers;
use layer0_tokenizers::choose::Choice;

impl Registry {
    /// Loads the models that are not loaded yet, each on its own thread. A model is published once the worker threads
    /// have warmed up its tokenizer.
    ///
    /// # Errors
    /// The error of the first model that cannot be loaded.
    pub async fn load(&self, workers: &Workers) -> Result<(), ModelError> {
        let mut loads = JoinSet::new();
        let mut ids = HashMap::new();
        for entry in self.models().iter().filter(|entry| entry.embedder().is_none()) {
            let loading = Arc::clone(entry);
            let task = loads.spawn_blocking(move || loading.load().map(|loaded| (loading, loaded)));
            ids.insert(task.id(), entry.id());
        }
        while let Some(loaded) = loads.join_next().await {
            let (entry, embedder) = loaded.unwrap_or_else(|panic| {
                let id = ids.get(&panic.id()).copied().unwrap_or_default();
                Err(ModelError::Panicked { id: id.to_owned(), panic: panic.to_string() })
            })?;
            warm_up(workers, embedder.choice()).await;
            entry.publish(embedder);
        }
        Ok(())
    }
}

/// Calls the tokenizer once on each worker thread, because a thread's first call is slow. Only as many threads are
/// warmed up as can run at the same time: the others would only delay the first response.
async fn warm_up(workers: &Workers, choice: Arc<Choice>) {
    let mut warming = workers.on_each_thread(move |_| choice.warm());
    while warming.next().await.is_some() {}
}
