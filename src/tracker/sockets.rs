//! The tracker's sockets: TCP and UDP on the same port, IPv4 and IPv6 apart.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{
    Ipv4PacketInfo, Ipv6RecvPacketInfo, Ipv6V6Only, RcvBuf, ReceiveTimeout, ReuseAddr, ReusePort,
};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, setsockopt, socket,
};
use nix::sys::time::TimeVal;

/// The port that everybody knows.
pub const DEFAULT_PORT: u16 = 6969;
/// Connections that wait to be accepted: a burst of a thousand clients after a restart.
const BACKLOG: i32 = 1_024;
/// Datagrams wait here while a thread is busy: some 10,000 announces.
const UDP_BUFFER_BYTES: usize = 1 << 20;
/// A UDP thread looks up this often even if nothing comes.
const UDP_PATIENCE_S: i64 = 1;
/// Free ports tried when any will do: TCP's may be taken for UDP.
const ANY_PORT_ATTEMPTS: usize = 16;

/// What listens on one address.
pub struct Bound {
    pub address: SocketAddr,
    pub tcp: TcpListener,
    pub udp: Vec<OwnedFd>,
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("a tracker runs here already: peerd {} {}", reachable(*.0), .0.port())]
    TrackerRuns(SocketAddr),
    #[error("port {} of {} is in use by another program: name another with --listen", .0.port(), .0.ip())]
    PortInUse(SocketAddr),
    #[error("cannot listen on {address}: {source}")]
    Other { address: SocketAddr, source: io::Error },
}

impl BindError {
    /// Whether there is no such address family, or it is turned off.
    fn no_such_family(&self) -> bool {
        matches!(self, BindError::Other { source, .. } if matches!(
            source.raw_os_error().map(Errno::from_raw),
            Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::EPROTONOSUPPORT)
        ))
    }
}

/// Listens on these addresses; on the default port of both families when there are none, of IPv4 alone where IPv6 is off.
/// Blocking.
///
/// # Errors
/// When one of them is taken or not ours.
pub fn bind_all(addresses: &[SocketAddr], udp_threads: usize) -> Result<Vec<Bound>, BindError> {
    if !addresses.is_empty() {
        return addresses.iter().map(|address| bind_both(*address, udp_threads)).collect();
    }
    let v4 = bind_both((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT).into(), udp_threads)?;
    match bind_both((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT).into(), udp_threads) {
        Ok(v6) => Ok(vec![v4, v6]),
        Err(error) if error.no_such_family() => Ok(vec![v4]),
        Err(error) => Err(error),
    }
}

fn bind_both(address: SocketAddr, udp_threads: usize) -> Result<Bound, BindError> {
    let mut attempts = if address.port() == 0 { ANY_PORT_ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        match try_both(address, udp_threads) {
            Err(Errno::EADDRINUSE) if attempts > 0 => {}
            Err(Errno::EADDRINUSE) if is_tracker(address) => return Err(BindError::TrackerRuns(address)),
            Err(Errno::EADDRINUSE) => return Err(BindError::PortInUse(address)),
            Err(error) => return Err(BindError::Other { address, source: error.into() }),
            Ok(bound) => return Ok(bound),
        }
    }
}

fn try_both(address: SocketAddr, udp_threads: usize) -> Result<Bound, Errno> {
    // TCP first: it is never shared, so that a second tracker is noticed before it takes half of the datagrams.
    let tcp = open(address, SockType::Stream, SockFlag::SOCK_NONBLOCK)?;
    setsockopt(&tcp, ReuseAddr, &true)?;
    bind(tcp.as_raw_fd(), &SockaddrStorage::from(address))?;
    let bound: SockaddrStorage = getsockname(tcp.as_raw_fd())?;
    let port = bound.as_sockaddr_in().map(|address| address.port());
    let port = port.or_else(|| bound.as_sockaddr_in6().map(|address| address.port())).unwrap_or(address.port());
    let address = SocketAddr::new(address.ip(), port);
    listen(&tcp, Backlog::new(BACKLOG)?)?;
    let udp = (0..udp_threads.max(1)).map(|_| open_udp(address)).collect::<Result<Vec<_>, _>>()?;
    Ok(Bound { address, tcp: tcp.into(), udp })
}

fn open_udp(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let udp = open(address, SockType::Datagram, SockFlag::empty())?;
    setsockopt(&udp, ReusePort, &true)?;
    match address {
        SocketAddr::V4(_) => setsockopt(&udp, Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(&udp, Ipv6RecvPacketInfo, &true)?,
    }
    setsockopt(&udp, ReceiveTimeout, &TimeVal::new(UDP_PATIENCE_S, 0))?;
    // The system may grant less: then more is lost in bursts, and clients ask again.
    let _ = setsockopt(&udp, RcvBuf, &UDP_BUFFER_BYTES);
    bind(udp.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(udp)
}

fn open(address: SocketAddr, kind: SockType, flags: SockFlag) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, kind, flags | SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        // IPv4 has a socket of its own.
        setsockopt(&fd, Ipv6V6Only, &true)?;
    }
    Ok(fd)
}

/// Whether what holds the port answers as a tracker does.
fn is_tracker(address: SocketAddr) -> bool {
    const PATIENCE: Duration = Duration::from_secs(1);
    let ask = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(reachable(address), address.port()), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(1_024).read_to_end(&mut answer)?;
        Ok(answer.starts_with(b"HTTP/1.") && answer.ends_with(b"\nok\n"))
    };
    ask().unwrap_or(false)
}

/// The address to type on this machine for something that listens on `address`.
fn reachable(address: SocketAddr) -> IpAddr {
    match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_transports_share_a_port_and_a_second_one_is_refused() {
        let first = bind_all(&["127.0.0.1:0".parse().unwrap()], 2).unwrap();
        let address = first[0].address;
        assert_eq!(first[0].udp.len(), 2);
        assert_eq!(first[0].tcp.local_addr().unwrap(), address);
        assert!(std::net::UdpSocket::bind(address).is_err());
        let second = bind_all(&[address], 2).err().unwrap();
        assert!(matches!(second, BindError::PortInUse(_)), "{second}");
        drop(first);
        bind_all(&[address], 1).unwrap();
    }

    #[test]
    fn the_message_is_what_to_type() {
        let message = BindError::TrackerRuns("0.0.0.0:6969".parse().unwrap()).to_string();
        assert_eq!(message, "a tracker runs here already: peerd 127.0.0.1 6969");
    }
}
