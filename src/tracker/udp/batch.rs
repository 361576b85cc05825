//! Datagrams in batches: all that wait are taken by one system call and answered by another (recvmmsg, sendmmsg).
//!
//! A reply goes out from the address that was asked: a client drops answers from another. IPv4 and IPv6 differ in the
//! shape of addresses and of the control message that names ours.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrIn, SockaddrIn6, SockaddrLike,
    recvmmsg, sendmmsg,
};

/// Datagrams taken at once: with more the system calls are no longer what costs, and the first ones answered wait.
const BATCH: usize = 64;
/// A scrape of 74 hashes has 1,496 bytes. What is longer is cut: options behind an announce concern nobody here. An odd
/// number of cache lines, so that the slots' beginnings do not displace each other.
const SLOT_BYTES: usize = 25 * 64;

/// What differs between the families.
pub trait Family {
    type Address: SockaddrLike + Copy;

    /// Room for the control message that names our address.
    fn control_space() -> Vec<u8>;
    fn socket_addr(address: &Self::Address) -> SocketAddr;
    /// Our address, if that is what this control message names.
    fn local(message: &ControlMessageOwned) -> Option<IpAddr>;
    /// Sends as many as go at once from our address `local`; how many went.
    fn send(
        socket: &OwnedFd,
        headers: &mut MultiHeaders<Self::Address>,
        slices: &[[IoSlice<'_>; 1]],
        to: &[Option<Self::Address>],
        local: IpAddr,
    ) -> Result<usize, Errno>;
}

pub struct V4;

impl Family for V4 {
    type Address = SockaddrIn;

    fn control_space() -> Vec<u8> {
        cmsg_space!(libc::in_pktinfo)
    }

    fn socket_addr(address: &SockaddrIn) -> SocketAddr {
        SocketAddr::from((address.ip(), address.port()))
    }

    fn local(message: &ControlMessageOwned) -> Option<IpAddr> {
        let ControlMessageOwned::Ipv4PacketInfo(info) = message else { return None };
        Some(Ipv4Addr::from_bits(u32::from_be(info.ipi_spec_dst.s_addr)).into())
    }

    fn send(
        socket: &OwnedFd,
        headers: &mut MultiHeaders<SockaddrIn>,
        slices: &[[IoSlice<'_>; 1]],
        to: &[Option<SockaddrIn>],
        local: IpAddr,
    ) -> Result<usize, Errno> {
        let IpAddr::V4(local) = local else { return Err(Errno::EAFNOSUPPORT) };
        let source = libc::in_addr { s_addr: local.to_bits().to_be() };
        let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: libc::in_addr { s_addr: 0 } };
        let control = [ControlMessage::Ipv4PacketInfo(&info)];
        Ok(sendmmsg(socket.as_raw_fd(), headers, slices, to, control, MsgFlags::empty())?.count())
    }
}

pub struct V6;

impl Family for V6 {
    type Address = SockaddrIn6;

    fn control_space() -> Vec<u8> {
        cmsg_space!(libc::in6_pktinfo)
    }

    fn socket_addr(address: &SockaddrIn6) -> SocketAddr {
        SocketAddrV6::new(address.ip(), address.port(), 0, address.scope_id()).into()
    }

    fn local(message: &ControlMessageOwned) -> Option<IpAddr> {
        let ControlMessageOwned::Ipv6PacketInfo(info) = message else { return None };
        Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into())
    }

    fn send(
        socket: &OwnedFd,
        headers: &mut MultiHeaders<SockaddrIn6>,
        slices: &[[IoSlice<'_>; 1]],
        to: &[Option<SockaddrIn6>],
        local: IpAddr,
    ) -> Result<usize, Errno> {
        let IpAddr::V6(local) = local else { return Err(Errno::EAFNOSUPPORT) };
        let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: local.octets() }, ipi6_ifindex: 0 };
        let control = [ControlMessage::Ipv6PacketInfo(&info)];
        Ok(sendmmsg(socket.as_raw_fd(), headers, slices, to, control, MsgFlags::empty())?.count())
    }
}

/// One datagram of a batch.
pub struct Received<'b> {
    pub datagram: &'b [u8],
    pub from: SocketAddr,
    /// Which of our addresses it came to.
    pub local: IpAddr,
}

/// What one thread uses again for every batch.
pub struct Batch<F: Family> {
    receiving: MultiHeaders<F::Address>,
    sending: MultiHeaders<F::Address>,
    slots: Box<[u8]>,
    replies: Replies<F::Address>,
}

/// The answers of one batch, one behind the other.
struct Replies<S> {
    bytes: Vec<u8>,
    /// Where each lies in `bytes`, and from which of our addresses it goes out.
    spans: Vec<(Range<usize>, IpAddr)>,
    to: Vec<Option<S>>,
}

impl<F: Family> Batch<F> {
    pub fn new() -> Batch<F> {
        let headers = || MultiHeaders::preallocate(BATCH, Some(F::control_space()));
        let replies = Replies { bytes: Vec::new(), spans: Vec::with_capacity(BATCH), to: Vec::with_capacity(BATCH) };
        let slots = vec![0; BATCH * SLOT_BYTES].into_boxed_slice();
        Batch { receiving: headers(), sending: headers(), slots, replies }
    }

    /// Waits for a datagram, takes what else is there, asks `answer` about each (it appends its reply and says whether
    /// there is one), and sends the replies.
    ///
    /// # Errors
    /// When nothing could be received. What cannot be sent is lost, as any datagram may be: the client asks again.
    pub fn round(
        &mut self,
        socket: &OwnedFd,
        mut answer: impl FnMut(Received<'_>, &mut Vec<u8>) -> bool,
    ) -> Result<(), Errno> {
        let Batch { receiving, sending, slots, replies } = self;
        replies.clear();
        let mut complete = true;
        {
            let mut slots = slots.chunks_exact_mut(SLOT_BYTES);
            let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
                std::array::from_fn(|_| [IoSliceMut::new(slots.next().unwrap_or_default())]);
            let messages = recvmmsg(socket.as_raw_fd(), receiving, &mut slices, MsgFlags::MSG_WAITFORONE, None)?;
            for message in messages {
                let (Some(to), Some(local)) = (message.address, local::<F>(&message)) else {
                    complete = false;
                    continue;
                };
                let datagram = message.iovs().next().unwrap_or_default();
                let begin = replies.bytes.len();
                if answer(Received { datagram, from: F::socket_addr(&to), local }, &mut replies.bytes) {
                    replies.spans.push((begin..replies.bytes.len(), local));
                    replies.to.push(Some(to));
                }
            }
        }
        if !complete {
            // The system writes into the headers how long each control message was: after one that lacked they have no
            // more room for any.
            *receiving = MultiHeaders::preallocate(BATCH, Some(F::control_space()));
        }
        replies.send::<F>(socket, sending);
        Ok(())
    }
}

fn local<F: Family>(message: &RecvMsg<'_, '_, F::Address>) -> Option<IpAddr> {
    message.cmsgs().ok()?.find_map(|control| F::local(&control))
}

impl<S: SockaddrLike + Copy> Replies<S> {
    fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
        self.to.clear();
    }

    fn send<F: Family<Address = S>>(&self, socket: &OwnedFd, headers: &mut MultiHeaders<S>) {
        let slices: [[IoSlice<'_>; 1]; BATCH] = std::array::from_fn(|place| {
            let span = self.spans.get(place).map_or(0..0, |(span, _)| span.clone());
            [IoSlice::new(&self.bytes[span])]
        });
        let mut begin = 0;
        while let Some((_, local)) = self.spans.get(begin) {
            // Almost always the whole batch.
            let same = self.spans[begin..].iter().take_while(|(_, other)| other == local).count();
            let end = begin + same;
            // The one at which the system stopped is lost; the others are tried.
            let sent = F::send(socket, headers, &slices[begin..end], &self.to[begin..end], *local).unwrap_or(0);
            begin += if sent == same { same } else { sent + 1 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::sockets::bind_all;
    use std::net::UdpSocket;
    use std::time::Duration;

    /// More than a batch, from several senders: everybody gets their own answers, from the address they asked.
    fn echoes<F: Family>(listen: &str, ask: &[&str]) {
        let bound = bind_all(&[listen.parse().unwrap()], 1).unwrap();
        let (address, socket) = (bound[0].address, &bound[0].udp[0]);
        let clients: Vec<UdpSocket> = ask
            .iter()
            .map(|ip| {
                let ip: IpAddr = ip.parse().unwrap();
                let client = UdpSocket::bind((ip, 0)).unwrap();
                client.connect((ip, address.port())).unwrap();
                client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                client
            })
            .collect();
        const EACH: usize = 50;
        for n in 0..EACH {
            clients.iter().for_each(|client| assert_eq!(client.send(&[n as u8; 9]).unwrap(), 9));
        }
        let (mut batch, mut seen, mut rounds) = (Batch::<F>::new(), 0, 0);
        while seen < EACH * ask.len() {
            batch
                .round(socket, |Received { datagram, from, local }, reply| {
                    seen += 1;
                    assert!(clients.iter().any(|client| client.local_addr().unwrap() == from));
                    assert_eq!(local, from.ip());
                    // Every fifth gets no answer.
                    reply.extend(datagram);
                    reply.push(b'!');
                    let answered = datagram[0] % 5 != 4;
                    if !answered {
                        reply.truncate(reply.len() - datagram.len() - 1);
                    }
                    answered
                })
                .unwrap();
            rounds += 1;
        }
        assert!(rounds <= 2 + seen / BATCH, "{rounds} rounds for {seen} datagrams that lay there");
        for client in &clients {
            for n in (0..EACH as u8).filter(|n| n % 5 != 4) {
                let mut reply = [0; 100];
                assert_eq!(client.recv(&mut reply).unwrap(), 10);
                assert_eq!(reply[..10], [n, n, n, n, n, n, n, n, n, b'!']);
            }
        }
    }

    #[test]
    fn a_batch_of_ipv4() {
        echoes::<V4>("0.0.0.0:0", &["127.0.0.1", "127.0.0.2", "127.0.0.1"]);
    }

    #[test]
    fn a_batch_of_ipv6() {
        echoes::<V6>("[::]:0", &["::1", "::1"]);
    }
}
