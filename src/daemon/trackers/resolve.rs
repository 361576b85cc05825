//! Host names to addresses, with a time-out of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::TrackerError;

/// The system's resolver may try several servers for 5 s each; a tracker whose name takes longer counts as down.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses tried of one host: each costs a time-out when it is dead.
pub const MAX_ADDRESSES: usize = 4;

/// All addresses of a host, at least one, at most [`MAX_ADDRESSES`], in the order that the system prefers.
///
/// # Errors
/// When there are none, or no answer in time.
pub async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, TrackerError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let found = tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((host, port))).await;
    let found = found.map_err(|_| TrackerError::unreachable(format!("no address for {host} in {TIMEOUT:?}")))?;
    let found = found.map_err(|error| TrackerError::unreachable(format!("no address for {host}: {error}")))?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(TrackerError::unreachable(format!("no address for {host}")));
    }
    Ok(addresses)
}

/// The same for reqwest, which adds the port.
pub(super) struct HttpResolver;

impl HttpResolver {
    pub(super) fn shared() -> Arc<dyn Resolve> {
        Arc::new(HttpResolver)
    }
}

impl Resolve for HttpResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let addresses = resolve(name.as_str(), 0).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_need_no_look_up() {
        assert_eq!(resolve("::1", 1).await, Ok(vec!["[::1]:1".parse().unwrap()]));
        assert_eq!(resolve("127.0.0.1", 1).await, Ok(vec!["127.0.0.1:1".parse().unwrap()]));
        assert!(resolve("localhost", 7).await.is_ok_and(|found| found.iter().all(|a| a.ip().is_loopback())));
        assert!(matches!(resolve("no such host", 1).await, Err(TrackerError::Unreachable { .. })));
    }
}
