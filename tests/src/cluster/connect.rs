//! Clients of an API server that only its own network reaches.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Result;
use http::Uri;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, Service, ServiceBuilder};

use crate::node::Node;

/// A client for the kubeconfig, with connections made in the node.
///
/// A socket belongs to the network that it was made in, whoever uses it later:
/// so the client works on every thread, and no thread of this process and no
/// interface of the host takes part.
pub(super) async fn client(node: &Node, kubeconfig: &str) -> Result<Client> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let connector = Connector { node: node.clone() };
    let https = config.rustls_https_connector_with_connector(connector)?;
    let http: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}

#[derive(Clone)]
struct Connector {
    node: Node,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<tokio::net::TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let node = self.node.clone();
        Box::pin(async move {
            let address = address(&server)?;
            let connected = tokio::task::spawn_blocking(move || connect(&node, address));
            let stream = connected.await.map_err(io::Error::other)??;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(tokio::net::TcpStream::from_std(stream)?))
        })
    }
}

fn address(server: &Uri) -> io::Result<SocketAddr> {
    let text = server.authority().map(http::uri::Authority::as_str);
    let address = text.and_then(|text| text.parse().ok());
    address.ok_or_else(|| io::Error::other(format!("{server}: not by address and port")))
}

fn connect(node: &Node, address: SocketAddr) -> io::Result<TcpStream> {
    let timeout = Duration::from_secs(5);
    let thread = node.inside(move || Ok(TcpStream::connect_timeout(&address, timeout)?));
    let joined = thread
        .join()
        .map_err(|_| io::Error::other("the connecting thread panicked"))?;
    joined.map_err(|error| match error.downcast::<io::Error>() {
        Ok(error) => error,
        Err(error) => io::Error::other(error),
    })
}
