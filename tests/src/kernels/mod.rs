//! Other kernels: Debian's packages, booted in an emulated machine.
//!
//! [`kernel`] finds, downloads and unpacks one, [`image`] packs what the guest
//! needs of this machine, and [`guest`] boots both and reads what it prints.

pub mod guest;
mod image;
mod kernel;
