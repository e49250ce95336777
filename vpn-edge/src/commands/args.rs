//! Options that daemons share, in groups.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Error, Result, bail, ensure};
use axum::Router;
use ipnet::IpNet;
use tokio::net::TcpListener;
use vpn_edge_common::FLOWS;

use crate::args::{BpffsArgs, variable};
use crate::auth::{Identity, IdentityArgs};
use crate::datapath::LogLevel;
use crate::domain::{PlanLimit, PortRange, TunnelSettings};
use crate::gateway::{LEAST_IPV6_MTU, OVERHEAD};
use crate::http::{HttpServer, Tls, TlsArgs, listen};
use crate::local::sqlite::KeySource;

/// MTUs that a tunnel may be given.
const MTU: RangeInclusive<i64> = LEAST_IPV6_MTU as i64..=8920;

/// An edge: of `standalone` and `agent`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Edge")]
pub struct EdgeArgs {
    /// Interface that clients' packets arrive on; repeat for up to four [default
    /// in a cluster: the interfaces of the default routes].
    #[arg(long = "uplink", value_name = "INTERFACE", help_heading = None::<&str>)]
    pub uplinks: Vec<String>,
    /// Address that clients send to; repeat for several. Replies leave from the
    /// first of each IP version [default: all addresses of the uplinks].
    #[arg(long = "address", value_name = "ADDRESS")]
    pub addresses: Vec<IpAddr>,
    /// First of the 128 UDP source ports of packets to gateways on other nodes.
    /// They are reserved: the node's own connections do not use them.
    #[arg(long, value_name = "PORT", default_value_t = 61_000)]
    pub hop_ports: u16,
    /// Rate limit per second and direction for each tenant of a plan:
    /// PLAN=packets:N,bytes:N, where one part may be missing; repeat for other
    /// plans [default: no limits].
    #[arg(long = "limit", value_name = "LIMIT", value_delimiter = ';')]
    pub limits: Vec<PlanLimit>,
    #[command(flatten)]
    pub maps: BpffsArgs,
    /// Log what the eBPF programs do with packets, for diagnosis, down to this
    /// level.
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t)]
    pub datapath_log: LogLevel,
    /// Address and port of /healthz, for a load balancer; [::] is every address
    /// of both IP versions.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:9095",
        help_heading = OBSERVERS
    )]
    pub health: SocketAddr,
    /// Address and port of /metrics, for Prometheus. Metrics contain tenant IDs.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:9096",
        help_heading = OBSERVERS
    )]
    pub metrics: SocketAddr,
    /// Time in seconds between SIGTERM and the end of the process, in which
    /// /healthz answers 503.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, help_heading = OBSERVERS)]
    pub drain: u64,
}

/// Heading of what load balancers, kubelets and Prometheus ask.
pub const OBSERVERS: &str = "Health and metrics";

impl EdgeArgs {
    /// The hop ports.
    ///
    /// # Errors
    ///
    /// If the range does not fit.
    pub fn hop_range(&self) -> Result<RangeInclusive<u16>> {
        let last = usize::from(self.hop_ports) + FLOWS - 1;
        match u16::try_from(last) {
            Ok(last) if self.hop_ports >= 1024 => Ok(self.hop_ports..=last),
            _ => bail!(
                "--hop-ports {} leaves fewer than {FLOWS} ports: use a port from 1024 to {}",
                self.hop_ports,
                usize::from(u16::MAX) + 1 - FLOWS
            ),
        }
    }

    /// Checks that no tenant's port is a hop port.
    ///
    /// # Errors
    ///
    /// If one is, and like [`EdgeArgs::hop_range`].
    pub fn check_ports(&self, ranges: &[PortRange]) -> Result<()> {
        let hops = self.hop_range()?;
        for range in ranges {
            ensure!(
                *hops.end() < range.first() || *hops.start() > range.last(),
                "--hop-ports {} overlaps --ports {range}: use ports outside of it",
                self.hop_ports
            );
        }
        Ok(())
    }
}

/// The HTTP API and who may call it: of `standalone` and `controller`.
#[derive(Debug, clap::Args)]
pub struct ApiArgs {
    /// Address and port of the HTTP API.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    tls: TlsArgs,
}

/// The API as its options say, before it has anything to serve.
pub struct Api {
    pub identity: Arc<Identity>,
    tls: Option<Tls>,
    behind_proxies: bool,
}

impl ApiArgs {
    /// Reads certificates and who may call.
    ///
    /// # Errors
    ///
    /// When a file or a value cannot be used, or nobody could call.
    pub fn load(&self) -> Result<Api> {
        let tls = self.tls.load()?;
        Ok(Api {
            identity: self.identity.load(tls.is_some())?,
            tls,
            behind_proxies: self.identity.has_proxies(),
        })
    }

    /// # Errors
    ///
    /// When the address cannot be used.
    pub fn listen(&self) -> Result<TcpListener> {
        listen(self.listen).with_context(|| format!("cannot listen on {}", self.listen))
    }
}

impl Api {
    pub fn serve(self, listener: TcpListener, router: Router) -> HttpServer {
        let serve = match self.behind_proxies {
            true => HttpServer::behind_proxies,
            false => HttpServer::start,
        };
        serve(listener, self.tls, router)
    }
}

/// All tunnels: of `standalone` and `controller`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Tunnels")]
pub struct TunnelArgs {
    /// DNS server in clients' configurations.
    #[arg(long, value_name = "ADDRESS", default_value = "10.96.0.10")]
    pub dns: IpAddr,
    /// Networks that clients route into the tunnel.
    #[arg(
        long,
        value_name = "NETWORK",
        value_delimiter = ',',
        default_value = "10.96.0.0/12,10.0.0.0/8"
    )]
    pub allowed_ips: Vec<IpNet>,
    /// Networks that no tunnel's subnet may overlap; in a cluster those of
    /// Services, pods and nodes.
    #[arg(
        long,
        value_name = "NETWORK",
        value_delimiter = ',',
        default_value = "10.96.0.0/12,10.244.0.0/16"
    )]
    pub cluster_ranges: Vec<IpNet>,
    /// Carry IPv6 in the tunnels too. Tenants' networks, --allowed-ips and --dns
    /// may then be IPv6.
    #[arg(long)]
    pub tunnel_ipv6: bool,
    /// MTU of the tunnels in bytes [default: the largest that fits].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(MTU))]
    pub mtu: Option<u32>,
}

impl TunnelArgs {
    /// What these options set for all tunnels. `link` is the MTU that tunnels' own
    /// packets have to fit into, where it is known.
    ///
    /// # Errors
    ///
    /// When addresses are IPv6 and tunnels carry none, or the MTU is too large for
    /// the link, or the link's too small for IPv6.
    pub fn settings(&self, link: Option<u32>) -> Result<TunnelSettings> {
        if !self.tunnel_ipv6 {
            ensure!(
                self.dns.is_ipv4(),
                "--dns is {}, but tunnels are IPv4 only: add --tunnel-ipv6",
                self.dns
            );
            let network = self.allowed_ips.iter().find(|net| net.addr().is_ipv6());
            if let Some(network) = network {
                bail!("--allowed-ips has {network}, but tunnels are IPv4 only: add --tunnel-ipv6");
            }
        }
        let mut mtu = self.mtu;
        if let Some(link) = link {
            let largest = link.saturating_sub(OVERHEAD);
            ensure!(
                !self.tunnel_ipv6 || largest >= LEAST_IPV6_MTU,
                "IPv6 in the tunnels takes an uplink with an MTU of {} or more, and this one has \
                 {link}: raise it, or go without --tunnel-ipv6",
                OVERHEAD + LEAST_IPV6_MTU
            );
            let wanted = mtu.unwrap_or(largest);
            ensure!(
                wanted <= largest,
                "--mtu is {wanted}, and the uplink's MTU of {link} leaves {largest}: \
                 name less, or raise the uplink's"
            );
            mtu = Some(wanted);
        }
        Ok(TunnelSettings {
            cluster_ranges: self.cluster_ranges.clone(),
            dns: self.dns,
            ipv6: self.tunnel_ipv6,
            mtu,
        })
    }
}

/// Where `standalone` stores tenants and keys.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Database", mut_args(variable))]
pub struct DatabaseArgs {
    /// SQLite file with tenants and keys; created if missing.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/lib/vpn-edge/vpn-edge.db"
    )]
    pub database: PathBuf,
    /// File with the key that encrypts private keys in the database; created if
    /// missing. The variable VPN_EDGE_KEY can hold the key instead [default: the
    /// database's name and .key].
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

impl DatabaseArgs {
    /// # Errors
    ///
    /// When two keys are named, or what is named is none.
    pub fn key_source(&self) -> Result<KeySource> {
        KeySource::of(self.key_file.clone(), &self.database).map_err(Error::msg)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Tunnels {
        #[command(flatten)]
        args: TunnelArgs,
    }

    /// What the options set over a link of this MTU, or what is wrong with them.
    fn tunnels(line: &str, link: Option<u32>) -> Result<TunnelSettings, String> {
        let words = std::iter::once("tunnels").chain(line.split_ascii_whitespace());
        let tunnels = Tunnels::try_parse_from(words).map_err(|error| error.to_string())?;
        let settings = tunnels.args.settings(link);
        settings.map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_tunnel_has_the_largest_mtu_that_fits_unless_one_is_set() {
        let mtu = |line, link| tunnels(line, link).unwrap().mtu;
        assert_eq!(mtu("", None), None);
        assert_eq!(mtu("", Some(1500)), Some(1420));
        assert_eq!(mtu("--mtu 1300", None), Some(1300));
        assert_eq!(mtu("--mtu 1300", Some(1500)), Some(1300));
        assert_eq!(mtu("--mtu 1420", Some(1500)), Some(1420));
        assert_eq!(mtu("", Some(1300)), Some(1220));
    }

    #[test]
    fn tunnels_that_could_not_work_are_refused_with_what_to_do() {
        for (line, link, expected) in [
            (
                "--mtu 1421",
                Some(1500),
                "--mtu is 1421, and the uplink's MTU of 1500 leaves 1420: name less",
            ),
            ("--mtu 1279", None, "1279 is not in 1280..=8920"),
            (
                "--tunnel-ipv6",
                Some(1359),
                "an uplink with an MTU of 1360 or more, and this one has 1359",
            ),
            (
                "--dns fd00::53",
                None,
                "--dns is fd00::53, but tunnels are IPv4 only: add --tunnel-ipv6",
            ),
            (
                "--allowed-ips 10.0.0.0/8,fd00::/64",
                None,
                "--allowed-ips has fd00::/64, but tunnels are IPv4 only",
            ),
        ] {
            let said = tunnels(line, link).unwrap_err();
            assert!(said.contains(expected), "{line}: {said}");
        }
        let line = "--tunnel-ipv6 --dns fd00::53 --allowed-ips fd00::/64";
        assert!(tunnels(line, Some(1360)).unwrap().ipv6);
    }
}
