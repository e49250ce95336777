//! Messages as strangers make them: of the right shape, with or without the
//! proof that their sender knows the gateway's public key.

use anyhow::{Context, Result};
use lab::message;
use vpn_edge::wireguard::PublicKey;

/// Numbers that look random and are the same in every run.
pub struct Random(u64);

impl Random {
    /// The next number (xorshift64*).
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// So many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let numbers = std::iter::repeat_with(|| self.number().to_ne_bytes());
        numbers.flatten().take(length).collect()
    }

    fn index(&mut self) -> u32 {
        self.number() as u32
    }
}

/// Makes messages for one gateway, no two of them the same.
pub struct Forger {
    public_key: PublicKey,
    pub random: Random,
}

impl Forger {
    /// For the gateway that a client's configuration names. Any seed but zero.
    ///
    /// # Errors
    ///
    /// When it names none.
    pub fn new(configuration: &str, seed: u64) -> Result<Self> {
        let public_key = configuration
            .lines()
            .find_map(|line| line.strip_prefix("PublicKey = "))
            .context("the configuration has no public key")?;
        Ok(Self {
            public_key: public_key.parse().context("no public key")?,
            random: Random(seed),
        })
    }

    /// An initiation with a good mac1, and nothing else that is good.
    pub fn initiation(&mut self) -> Vec<u8> {
        message::initiation(self.random.index(), self.public_key.as_bytes())
    }

    /// An initiation whose mac1 is a guess.
    pub fn forged_initiation(&mut self) -> Vec<u8> {
        let mut initiation = self.initiation();
        initiation[116..132].copy_from_slice(&self.random.bytes(16));
        initiation
    }

    /// A response with a good mac1 to an initiation that nobody sent.
    pub fn response(&mut self) -> Vec<u8> {
        let (sender, receiver) = (self.random.index(), self.random.index());
        message::response(sender, receiver, self.public_key.as_bytes())
    }

    /// A cookie reply to nothing.
    pub fn cookie_reply(&mut self) -> Vec<u8> {
        message::cookie_reply(self.random.index())
    }

    /// Transport data of a session that is a guess.
    pub fn data(&mut self) -> Vec<u8> {
        message::data(self.random.index(), 128)
    }
}
