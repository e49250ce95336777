//! The larger network of the lab: that its balancer balances, that its switch
//! takes frames from XDP programs, that clients come through to a gateway by the
//! kernel's own means, and that our daemons run on it.

mod agent;
mod balancing;
mod kube_proxy;
mod standalone;
mod switch;
