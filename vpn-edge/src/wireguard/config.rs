//! The client's configuration file.

use std::net::IpAddr;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::keys::{ClientKey, PublicKey};

/// Seconds between a client's keepalives: what keeps NATs on the way open.
const PERSISTENT_KEEPALIVE: u16 = 25;

/// What a client needs to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    pub key: ClientKey,
    /// The client's addresses in the tunnel with the tunnel's prefix lengths.
    pub addresses: Vec<IpNet>,
    pub dns: IpAddr,
    pub server_public_key: PublicKey,
    /// What the client routes into the tunnel.
    pub allowed_ips: Vec<IpNet>,
    /// `host:port`.
    pub endpoint: String,
}

impl ClientConfig {
    /// A `wg-quick(8)` file. Where the client gave its key, it has a line to
    /// fill in, and `wg-quick` refuses it until that is done.
    pub fn render(&self) -> Zeroizing<String> {
        let list = |networks: &[IpNet]| -> String {
            let texts: Vec<String> = networks.iter().map(IpNet::to_string).collect();
            texts.join(", ")
        };
        let rest = format!(
            "Address = {}\n\
             DNS = {}\n\
             \n\
             [Peer]\n\
             PublicKey = {}\n\
             AllowedIPs = {}\n\
             Endpoint = {}\n\
             PersistentKeepalive = {PERSISTENT_KEEPALIVE}\n",
            list(&self.addresses),
            self.dns,
            self.server_public_key,
            list(&self.allowed_ips),
            self.endpoint,
        );
        // All of its room at once: one that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(rest.len() + 256));
        text.push_str("[Interface]\n");
        match &self.key {
            ClientKey::Made(key) => {
                text.push_str("PrivateKey = ");
                text.push_str(&key.to_base64());
                text.push('\n');
            }
            ClientKey::Given(key) => text.push_str(&format!(
                "# Fill in the private key of the public key {key}.\n\
                 PrivateKey = <your private key>\n"
            )),
        }
        text.push_str(&rest);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::PrivateKey;
    use super::*;

    fn config() -> ClientConfig {
        let key = PrivateKey::from_base64("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();
        ClientConfig {
            addresses: vec!["10.42.128.2/24".parse().unwrap()],
            dns: IpAddr::from([10, 96, 0, 10]),
            server_public_key: key.public(),
            allowed_ips: vec![
                "10.96.0.0/12".parse().unwrap(),
                "10.0.0.0/8".parse().unwrap(),
            ],
            endpoint: "vpn.cloud.kovra.dev:31001".to_owned(),
            key: ClientKey::Made(key),
        }
    }

    #[test]
    fn the_file_is_what_wg_quick_reads() {
        assert_eq!(
            config().render().as_str(),
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

    #[test]
    fn who_gave_a_key_has_a_line_to_fill_in() {
        let made = config();
        let mut given = made.clone();
        given.key = ClientKey::Given(made.key.public());
        assert_eq!(
            given.render().as_str(),
            made.render().replace(
                "PrivateKey = dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=",
                "# Fill in the private key of the public key \
                 hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=.\n\
                 PrivateKey = <your private key>"
            )
        );
    }

    #[test]
    fn addresses_of_both_versions_share_a_line() {
        let mut both = config();
        both.addresses.push("fd12:3456:789a::2/64".parse().unwrap());
        both.allowed_ips.push("fd00:97::/32".parse().unwrap());
        let changed: Vec<(String, String)> = config()
            .render()
            .lines()
            .zip(both.render().lines())
            .filter(|(a, b)| a != b)
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .collect();
        let addresses = "Address = 10.42.128.2/24";
        let allowed = "AllowedIPs = 10.96.0.0/12, 10.0.0.0/8";
        assert_eq!(
            changed,
            [
                (
                    addresses.to_owned(),
                    format!("{addresses}, fd12:3456:789a::2/64")
                ),
                (allowed.to_owned(), format!("{allowed}, fd00:97::/32")),
            ]
        );
    }
}
