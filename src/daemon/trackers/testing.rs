//! Trackers on loopback that say what a test wants them to say.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::wire::announce::{AnnounceRequest, Event};
use crate::wire::id::{InfoHash, PeerId};
use crate::wire::tracker_udp::{Family, Request, Response};

pub fn request() -> AnnounceRequest {
    AnnounceRequest {
        info_hash: InfoHash::new([7; 20]),
        peer_id: PeerId(*b"-PY0100-abcdefghijkl"),
        port: 6881,
        uploaded: 0,
        downloaded: 0,
        left: 1,
        event: Event::Started,
        numwant: None,
        key: Some(1),
        compact: true,
        no_peer_id: true,
        ip: None,
    }
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Heard {
    /// `GET /path?query`.
    pub line: String,
    pub head: String,
    pub body: Vec<u8>,
}

impl Heard {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Ends with the test that holds it.
pub struct Server {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Answers each request, on a connection of its own, with the bytes that `answer` gives.
    pub async fn http(answer: impl Fn(&Heard) -> Vec<u8> + Send + Sync + 'static) -> Server {
        Server::http_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(), answer)
    }

    pub fn http_on(listener: TcpListener, answer: impl Fn(&Heard) -> Vec<u8> + Send + Sync + 'static) -> Server {
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = heard.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                if let Some(request) = read_request(&mut stream).await {
                    log.lock().unwrap().push(request.clone());
                    // The client may hang up in the middle of a body that is too long for it.
                    let _ = stream.write_all(&answer(&request)).await;
                }
            }
        });
        Server { address, heard, _tasks: tasks }
    }

    /// Hands every request to `answer`, which sends what it likes by the socket.
    pub async fn udp(answer: impl Fn(Request, &mut dyn FnMut(Response)) + Send + 'static) -> Server {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let mut replies = Vec::new();
                answer(Request::decode(&buffer[..length]).unwrap(), &mut |response| replies.push(response));
                for reply in replies {
                    let mut datagram = Vec::new();
                    reply.encode(Family::V4, &mut datagram);
                    socket.send_to(&datagram, from).await.unwrap();
                }
            }
        });
        Server { address, heard: Arc::default(), _tasks: tasks }
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Heard> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let line = head.lines().next()?.trim_end_matches(" HTTP/1.1").to_owned();
    let mut heard = Heard { line, head, body: bytes.split_off(head_end) };
    let length: usize = heard.header("content-length").map_or(0, |length| length.parse().unwrap());
    while heard.body.len() < length {
        if stream.read_buf(&mut heard.body).await.ok()? == 0 {
            return None;
        }
    }
    Some(heard)
}

/// A whole answer; `headers` is any number of lines, each with its end.
pub fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// Gzip of `258 * matches + 1` zero bytes: one literal, then copies of it, in fixed Huffman codes (RFC 1951, 3.2.6). The
/// checksum at its end is wrong.
pub fn gzip_of_zeros(matches: usize) -> Vec<u8> {
    let mut bits = vec![true, true, false];
    let mut code = |code: u16, length: u32| bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
    code(0b0011_0000, 8);
    for _ in 0..matches {
        code(0b1100_0101, 8);
        code(0, 5);
    }
    code(0, 7);
    let mut gzip = vec![0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255];
    let byte = |bits: &[bool]| bits.iter().enumerate().fold(0, |byte, (at, bit)| byte | u8::from(*bit) << at);
    gzip.extend(bits.chunks(8).map(byte));
    gzip.extend([0; 8]);
    gzip
}
