//! Finds a place to listen.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

/// BitTorrent's customary ports, tried in this order where the user names none.
const CUSTOMARY_PORTS: std::ops::RangeInclusive<u16> = 6881..=6889;
/// Peers that knock while we are busy wait here.
const BACKLOG: u32 = 1_024;

/// Why there is no place to listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "{addr}: {source}: another program listens there, or the address is not this machine's; choose another with --listen"
    )]
    At { addr: SocketAddr, source: io::Error },
    #[error("none of the ports 6881 to 6889 is free: choose one with --listen 0.0.0.0:PORT")]
    NoneFree,
}

/// The addresses given; or both families on the port of the last run, or on the first customary port that is free.
///
/// # Errors
/// When an address given cannot be had, or no port is free.
pub fn listeners(given: &[SocketAddr], last_port: Option<u16>) -> Result<Vec<TcpListener>, BindError> {
    if !given.is_empty() {
        return given.iter().map(|addr| bind(*addr).map_err(|source| BindError::At { addr: *addr, source })).collect();
    }
    last_port.into_iter().chain(CUSTOMARY_PORTS).find_map(both_families).ok_or(BindError::NoneFree)
}

/// IPv4 must be free; IPv6 is taken as well where the machine has it.
fn both_families(port: u16) -> Option<Vec<TcpListener>> {
    let v4 = bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).ok()?;
    match bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        Ok(v6) => Some(vec![v4, v6]),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        Err(_) => Some(vec![v4]),
    }
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        // Each family has a socket of its own, so that no peer comes under an IPv4-mapped address.
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        socket
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}
