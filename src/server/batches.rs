//! Works on batches in the background: starts waiting batches, deletes what has expired, and stops with the server.
//!
//! A few batches are worked on at the same time (`server.max_running_batches`). Of those that wait, the oldest batch of the owner with the
//! fewest running batches is next, so one API key cannot keep the others waiting. `job` does the work on one batch.

mod answers;
mod job;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinSet};

use crate::batches::{BatchRecord, BatchStore, Owner};
use crate::server::router::active::ActiveRoutes;
use job::BatchJob;

/// The interval between two searches for files and batches whose time is over.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Works on the batches of the server until `stop` becomes true. Then the progress of running batches is saved, and the function returns.
pub async fn run(active: ActiveRoutes, mut stop: watch::Receiver<bool>) {
    let Some(store) = active.state().process.batches.clone() else { return };
    let mut running = Running::default();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        let max = active.state().config.server.max_running_batches;
        while running.batches.len() < max
            && let Some(batch) = running.next(&store)
        {
            running.start(&batch, BatchJob::new(active.clone(), Arc::clone(&store), batch.id.clone(), stop.clone()));
        }
        tokio::select! {
            () = job::stopped(&mut stop) => break,
            () = running.ended(&store) => {}
            () = store.changed() => {}
            _ = sweep.tick() => delete_expired(&store).await,
        }
    }
    while !running.batches.is_empty() {
        running.ended(&store).await;
    }
}

async fn delete_expired(store: &Arc<BatchStore>) {
    let store = Arc::clone(store);
    let deleted = tokio::task::spawn_blocking(move || store.delete_expired()).await;
    if let Ok(Err(error)) = deleted {
        tracing::error!(%error, "files and batches whose time is over cannot be deleted");
    }
}

/// The batches that are being worked on.
#[derive(Default)]
struct Running {
    tasks: JoinSet<()>,
    batches: HashMap<Id, (String, Owner)>,
}

impl Running {
    /// Returns the batch to start next.
    fn next(&self, store: &BatchStore) -> Option<BatchRecord> {
        let runs = |batch: &BatchRecord| self.batches.values().any(|(id, _)| *id == batch.id);
        let of_owner = |batch: &BatchRecord| self.batches.values().filter(|(_, owner)| *owner == batch.owner).count();
        // The batches are in the order of their creation, and the first of several minima is taken.
        store.unfinished().into_iter().filter(|batch| !runs(batch)).min_by_key(of_owner)
    }

    fn start(&mut self, batch: &BatchRecord, job: BatchJob) {
        let task = self.tasks.spawn(job.run());
        self.batches.insert(task.id(), (batch.id.clone(), batch.owner.clone()));
    }

    /// Resolves when the work on a batch has ended. Never resolves while no batch is being worked on.
    async fn ended(&mut self, store: &Arc<BatchStore>) {
        let (id, panicked) = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => (id, false),
            Some(Err(error)) => (error.id(), error.is_panic()),
            None => std::future::pending().await,
        };
        if let Some((batch, _)) = self.batches.remove(&id)
            && panicked
        {
            // The same would happen again.
            tracing::error!(batch, "the work on a batch panicked");
            job::fail(store, &batch, "server_error", "The server had an error while it processed the batch.").await;
        }
    }
}
