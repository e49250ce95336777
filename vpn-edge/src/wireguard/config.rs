//! The client's configuration file.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use zeroize::Zeroizing;

use super::keys::{PrivateKey, PublicKey};

/// Seconds between a client's keepalives: what keeps NATs on the way open.
const PERSISTENT_KEEPALIVE: u16 = 25;

/// What a client needs to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    pub private_key: PrivateKey,
    /// The client's address in the tunnel with the tunnel's prefix length.
    pub address: Ipv4Net,
    pub dns: Ipv4Addr,
    pub server_public_key: PublicKey,
    /// What the client routes into the tunnel.
    pub allowed_ips: Vec<Ipv4Net>,
    /// `host:port`.
    pub endpoint: String,
}

impl ClientConfig {
    /// A `wg-quick(8)` file.
    pub fn render(&self) -> Zeroizing<String> {
        let private_key = self.private_key.to_base64();
        let allowed_ips: Vec<String> = self.allowed_ips.iter().map(Ipv4Net::to_string).collect();
        Zeroizing::new(format!(
            "[Interface]\n\
             PrivateKey = {}\n\
             Address = {}\n\
             DNS = {}\n\
             \n\
             [Peer]\n\
             PublicKey = {}\n\
             AllowedIPs = {}\n\
             Endpoint = {}\n\
             PersistentKeepalive = {PERSISTENT_KEEPALIVE}\n",
            private_key.as_str(),
            self.address,
            self.dns,
            self.server_public_key,
            allowed_ips.join(", "),
            self.endpoint,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_what_wg_quick_reads() {
        let key = PrivateKey::from_base64("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();
        let config = ClientConfig {
            address: "10.42.128.2/24".parse().unwrap(),
            dns: Ipv4Addr::new(10, 96, 0, 10),
            server_public_key: key.public(),
            allowed_ips: vec![
                "10.96.0.0/12".parse().unwrap(),
                "10.0.0.0/8".parse().unwrap(),
            ],
            endpoint: "vpn.cloud.kovra.dev:31001".to_owned(),
            private_key: key,
        };
        assert_eq!(
            config.render().as_str(),
            "[Interface]\n\
             PrivateKey = dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n\
             Address = 10.42.128.2/24\n\
             DNS = 10.96.0.10\n\
             \n\
             [Peer]\n\
             PublicKey = hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n\
             AllowedIPs = 10.96.0.0/12, 10.0.0.0/8\n\
             Endpoint = vpn.cloud.kovra.dev:31001\n\
             PersistentKeepalive = 25\n"
        );
    }
}
