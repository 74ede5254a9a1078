//! Connections: accepted until the server has drained, each on a task of its own.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::{App, log};
use crate::Error;

/// A client that has sent no whole request head by then is cut off; so is a connection that nobody used for that long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// What connections may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(2);

/// Pause after a connection could not be accepted, as for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves connections until a signal asks the server to end and it has drained, or `failure` says that there is nothing to
/// serve with any more.
///
/// # Errors
/// That failure.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    app: &Arc<App>,
    mut signals: Signals,
    mut failure: oneshot::Receiver<Error>,
) -> Result<(), Error> {
    let (close, closing) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut drained = Box::pin(drained(app, &mut signals));
    let outcome = loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, router.clone(), closing.clone()));
                }
                Err(error) => {
                    log(&format!("can't accept a connection: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            // Frees what a finished task leaves.
            Some(_) = connections.join_next() => {}
            () = &mut drained => break Ok(()),
            Ok(error) = &mut failure => {
                app.drain();
                // Requests that ran have been told: their clients are to hear it.
                _ = tokio::time::timeout(FAREWELL, app.idle()).await;
                break Err(error);
            }
        }
    };
    drop(listener);
    // All of them have a receiver, or have ended.
    _ = close.send(true);
    let farewell = async { while connections.join_next().await.is_some() {} };
    // Whoever is still connected then is cut off.
    _ = tokio::time::timeout(FAREWELL, farewell).await;
    outcome
}

/// One connection. An error on it is its client's affair: there is nobody to tell.
async fn connection(stream: TcpStream, router: Router, mut closing: watch::Receiver<bool>) {
    // Tokens are to leave at once; without it they only come later.
    _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let service = TowerToHyperService::new(router);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = serving.as_mut() => return,
        _ = closing.wait_for(|&closing| closing) => serving.as_mut().graceful_shutdown(),
    }
    _ = serving.await;
}

/// Waits for a signal, takes no more requests, and waits until those that run have ended, the time for it is up, or a second
/// signal comes.
async fn drained(app: &Arc<App>, signals: &mut Signals) {
    signals.next().await;
    let running = app.drain();
    log(&format!(
        "shutting down: {running} requests may end within {:.0} s; another signal ends them now",
        app.options.drain_timeout.as_secs_f64()
    ));
    tokio::select! {
        () = app.idle() => return,
        () = tokio::time::sleep(app.options.drain_timeout) => {
            log(&format!("{} requests took too long and are cut off", app.running()));
        }
        () = signals.next() => log(&format!("{} requests are cut off", app.running())),
    }
    // They end with a reason, if their clients listen.
    let runner = app.runner.clone();
    tokio::task::spawn_blocking(move || runner.shutdown());
    _ = tokio::time::timeout(FAREWELL, app.idle()).await;
}

/// The signals that ask a server to end.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them from now on.
    pub fn new() -> Result<Signals, Error> {
        let catch = |kind| {
            signal(kind).map_err(|e| Error::Unsupported(format!("signals can't be caught: {e}")))
        };
        Ok(Signals {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
