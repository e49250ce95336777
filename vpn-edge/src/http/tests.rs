//! Over real connections on the loopback interface.

mod tls;

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

use super::*;

/// Long enough for anything that comes at all.
const HANGS: Duration = Duration::from_secs(30);

/// Patient, but for what a test is about.
const PATIENT: Limits = Limits {
    connections: 16,
    of_one: 16,
    head: HANGS,
    grace: HANGS,
};

const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const ASK_ONCE: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

async fn start(app: Router, limits: Limits) -> (HttpServer, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (HttpServer::with(listener, None, app, limits), address)
}

async fn connect(address: SocketAddr, sent: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(sent).await.unwrap();
    stream
}

/// What comes until the server closes the connection, be it by a reset.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    let closed = timeout(HANGS, stream.read_to_end(&mut text)).await;
    let _ = closed.expect("the server closes the connection");
    String::from_utf8(text).unwrap()
}

fn hello() -> Router {
    Router::new().route("/", get(async || "hello"))
}

/// Answers once it is told to; says when it was asked.
fn slow(asked: &Arc<Notify>, go: &Arc<Notify>) -> Router {
    let state = (asked.clone(), go.clone());
    let answer = async |State((asked, go)): State<(Arc<Notify>, Arc<Notify>)>| {
        asked.notify_one();
        go.notified().await;
        "done"
    };
    Router::new().route("/", get(answer)).with_state(state)
}

#[tokio::test]
async fn clients_that_send_no_whole_head_are_cut_off_and_others_served() {
    let limits = Limits {
        head: Duration::from_millis(200),
        ..PATIENT
    };
    let (_server, address) = start(hello(), limits).await;
    let silent = connect(address, b"").await;
    let slow = connect(address, b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ").await;
    let kept = connect(address, ASK).await;
    let other = rest(connect(address, ASK_ONCE).await).await;
    assert!(other.ends_with("hello"), "{other}");
    assert_eq!(rest(silent).await, "");
    assert!(!rest(slow).await.contains("hello"));
    let kept = rest(kept).await;
    assert!(kept.ends_with("hello"), "{kept}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_a_431() {
    let (_server, address) = start(hello(), PATIENT).await;
    let mut stream = connect(address, b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: ").await;
    // What is not read any more may come back as a reset.
    let _ = stream.write_all(&vec![b'a'; 2 * MAX_HEAD]).await;
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 431");
}

#[tokio::test]
async fn no_more_connections_are_served_at_once_than_there_is_room_for() {
    let served = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let counter = served.clone();
    let app = Router::new().route(
        "/",
        get(async move || {
            let [now, most] = &*counter;
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            sleep(Duration::from_millis(20)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            "hello"
        }),
    );
    let limits = Limits {
        connections: 2,
        ..PATIENT
    };
    let (_server, address) = start(app, limits).await;
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        clients.spawn(async move { rest(connect(address, ASK_ONCE).await).await });
    }
    for answer in clients.join_all().await {
        assert!(answer.ends_with("hello"), "{answer}");
    }
    assert_eq!(served[1].load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn one_address_leaves_room_for_others() {
    let limits = Limits {
        of_one: 2,
        ..PATIENT
    };
    let (_server, address) = start(hello(), limits).await;
    let mut held = vec![connect(address, b"").await, connect(address, b"").await];
    assert_eq!(rest(connect(address, b"").await).await, "");
    let from = tokio::net::TcpSocket::new_v4().unwrap();
    from.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = from.connect(address).await.unwrap();
    other.write_all(ASK_ONCE).await.unwrap();
    assert!(rest(other).await.ends_with("hello"));
    // And for itself, once it has closed one.
    drop(held.pop());
    let again = async {
        while !rest(connect(address, ASK_ONCE).await)
            .await
            .ends_with("hello")
        {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(HANGS, again).await.unwrap();
}

#[tokio::test]
async fn what_is_under_way_at_the_end_is_answered_and_nothing_new_taken() {
    let (asked, go) = (Arc::default(), Arc::default());
    let (server, address) = start(slow(&asked, &go), PATIENT).await;
    let idle = connect(address, b"").await;
    let under_way = connect(address, ASK).await;
    asked.notified().await;
    let finished = tokio::spawn(server.finish());
    assert_eq!(rest(idle).await, "");
    // It is closed before anybody is waited for, though perhaps not yet.
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(HANGS, refused).await.unwrap();
    // Time to break it off, were it not waited for.
    sleep(Duration::from_millis(50)).await;
    assert!(!finished.is_finished());
    go.notify_one();
    let answer = rest(under_way).await;
    assert!(answer.ends_with("done"), "{answer}");
    timeout(HANGS, finished).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_takes_too_long_at_the_end_is_broken_off() {
    let (asked, go) = (Arc::default(), Arc::default());
    let limits = Limits {
        grace: Duration::from_millis(100),
        ..PATIENT
    };
    let (server, address) = start(slow(&asked, &go), limits).await;
    let under_way = connect(address, ASK).await;
    asked.notified().await;
    timeout(HANGS, server.finish()).await.unwrap();
    assert_eq!(rest(under_way).await, "");
}
