//! Which addresses are this host's own, and what a peer on it is called.
//!
//! A peer that announces from the tracker's own host is known to the tracker by an address that may mean nothing to
//! others (127.0.0.1). It is entered as loopback, whichever of the host's addresses it used, and handed out under the
//! address by which the asker reached the tracker.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{PoisonError, RwLock};

use nix::ifaddrs::getifaddrs;

use super::keyed_hash::BuildKeyedHasher;
use super::limits::is_global;

#[derive(Default)]
pub struct OwnAddresses {
    of_interfaces: RwLock<HashSet<IpAddr, BuildKeyedHasher>>,
    /// For askers from the internet, when the configuration names it.
    public: Option<IpAddr>,
}

impl OwnAddresses {
    pub fn new(public: Option<IpAddr>) -> OwnAddresses {
        OwnAddresses { of_interfaces: RwLock::default(), public }
    }

    /// Looks at the interfaces again: addresses come and go.
    pub fn refresh(&self) {
        let found = interface_addresses().into_iter().collect();
        *self.of_interfaces.write().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// The address under which a peer from `ip` is entered.
    pub fn entered(&self, ip: IpAddr) -> IpAddr {
        let ip = ip.to_canonical();
        let own = ip.is_loopback() || self.of_interfaces.read().unwrap_or_else(PoisonError::into_inner).contains(&ip);
        match ip {
            _ if !own => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// How peers are called to an asker at `asker`, who reached the tracker at `local`.
    pub fn names_for(&self, asker: IpAddr, local: IpAddr) -> Names {
        let public = self.public.filter(|_| is_global(asker));
        let local = Some(local.to_canonical()).filter(|ip| !ip.is_unspecified());
        let of_family = |v4: bool| public.into_iter().chain(local).find(|ip| ip.is_ipv4() == v4);
        Names { v4: of_family(true), v6: of_family(false) }
    }
}

/// The addresses under which peers on the tracker's own host are told.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

impl Names {
    /// What is told of an entered peer. `None` when the peer is of this host and the asker came by the other family:
    /// there is no address to name.
    pub fn shown(self, peer: SocketAddr) -> Option<SocketAddr> {
        match peer {
            SocketAddr::V4(at) if at.ip().is_loopback() => self.v4.map(|ip| SocketAddr::new(ip, at.port())),
            SocketAddr::V6(at) if at.ip().is_loopback() => self.v6.map(|ip| SocketAddr::new(ip, at.port())),
            other => Some(other),
        }
    }
}

/// The addresses of this host's interfaces, loopback among them.
pub fn interface_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(own: &OwnAddresses, announced_from: &str, asker: &str, reached: &str, told: Option<&str>) {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let entered = SocketAddr::new(own.entered(ip(announced_from)), 7);
        let shown = own.names_for(ip(asker), ip(reached)).shown(entered);
        assert_eq!(shown, told.map(|told| SocketAddr::new(ip(told), 7)), "{announced_from} to {asker} at {reached}");
    }

    #[test]
    fn a_peer_on_the_trackers_host_is_named_as_the_asker_reached_the_tracker() {
        let of_host = ["192.168.1.5".parse().unwrap(), "2001:db8::5".parse().unwrap()];
        let mut own = OwnAddresses { of_interfaces: RwLock::new(of_host.into_iter().collect()), public: None };
        check(&own, "127.0.0.1", "192.168.1.9", "192.168.1.5", Some("192.168.1.5"));
        check(&own, "192.168.1.5", "127.0.0.1", "127.0.0.1", Some("127.0.0.1"));
        check(&own, "192.168.1.5", "10.0.0.9", "10.0.0.5", Some("10.0.0.5"));
        check(&own, "::ffff:127.0.0.1", "192.168.1.9", "::ffff:192.168.1.5", Some("192.168.1.5"));
        check(&own, "192.168.1.7", "192.168.1.9", "192.168.1.5", Some("192.168.1.7"));
        check(&own, "::1", "2001:db8::9", "2001:db8::5", Some("2001:db8::5"));
        check(&own, "::1", "192.168.1.9", "192.168.1.5", None);
        own.public = Some("198.51.100.1".parse().unwrap());
        check(&own, "127.0.0.1", "203.0.113.4", "192.168.1.5", Some("198.51.100.1"));
        check(&own, "127.0.0.1", "192.168.1.9", "192.168.1.5", Some("192.168.1.5"));
    }

    #[test]
    fn loopback_is_among_the_interfaces() {
        assert!(interface_addresses().iter().any(IpAddr::is_loopback));
    }
}
