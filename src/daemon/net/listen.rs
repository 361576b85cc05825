//! Accepts peers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::greet;
use crate::daemon::core::Core;

/// Connections that have not shown a handshake yet. A stranger can hold each for the handshake's 10 s at most.
const GREETINGS_AT_ONCE: usize = 128;
/// After an accept that failed for want of descriptors or memory, others need time to give theirs back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the daemon stops.
pub async fn run(core: Arc<Core>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(GREETINGS_AT_ONCE));
    loop {
        // The place is taken before the connection, so that the backlog waits in the kernel and not in us.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                let greeting = greet_incoming(core.clone(), stream, from, place);
                core.tasks.spawn("incoming", greeting);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn greet_incoming(core: Arc<Core>, stream: TcpStream, from: SocketAddr, place: OwnedSemaphorePermit) {
    match greet::incoming(&core, stream, from).await {
        Ok(greeted) => {
            drop(place);
            greeted.run(core).await;
        }
        Err(error) => tracing::debug!(%from, %error, "an incoming connection came to nothing"),
    }
}
