//! The store's copy of itself, made now and then: what is not in it when the database is found damaged must be shared or
//! fetched again.

use std::sync::Arc;
use std::time::Duration;

use crate::db::SledStore;

/// A dump reads and writes all rows, some megabytes for most: every ten minutes in which something changed is no load.
const DUMP_EVERY: Duration = Duration::from_secs(600);

/// Runs until the daemon stops.
pub async fn run(store: Arc<SledStore>) {
    loop {
        tokio::time::sleep(DUMP_EVERY).await;
        let store = store.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.dump()).await {
            tracing::warn!(%error, "the database could not be copied; the last copy stays");
        }
    }
}
