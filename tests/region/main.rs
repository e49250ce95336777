//! The larger network of the lab, without anything of ours on its edges: that
//! its balancer balances, that its switch takes frames from XDP programs, and
//! that clients come through to a gateway by the kernel's own means.

mod balancing;
mod kube_proxy;
mod standalone;
mod switch;
