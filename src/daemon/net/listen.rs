//! Accepts peers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::greet;
use super::waiting_room::WaitingRoom;
use crate::daemon::core::Core;

/// After an accept that failed for want of descriptors or memory, others need time to give theirs back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the daemon stops.
pub async fn run(core: Arc<Core>, listener: TcpListener) {
    let room = Arc::new(WaitingRoom::new(core.shares_of_descriptors.greetings));
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let greeting = greet_incoming(core.clone(), stream, from, room.clone());
                core.tasks.spawn("incoming", greeting);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn greet_incoming(core: Arc<Core>, stream: TcpStream, from: SocketAddr, room: Arc<WaitingRoom>) {
    let greeted = {
        let mut place = room.enter(from.ip());
        tokio::select! {
            greeted = greet::incoming(&core, stream, from) => greeted,
            () = place.displaced() => return,
        }
    };
    match greeted {
        Ok(greeted) => greeted.run(core).await,
        Err(error) => tracing::debug!(%from, %error, "an incoming connection came to nothing"),
    }
}
