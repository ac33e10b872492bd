//! The same with each of many images, several at a time.

use std::future::Future;
use std::pin::Pin;

use futures_util::stream::{StreamExt, iter};

use super::{Event, Failure, Listener, Result};

/// Images by name, and how far each came; `None` where it was stopped.
pub(super) type Images<T> = Vec<(String, Option<Result<T, Failure>>)>;

/// Tells which images it is about.
pub(super) fn tell_names<T>(images: &Images<T>, listener: &dyn Listener) {
    let names: Vec<String> = images.iter().map(|(name, _)| name.clone()).collect();
    listener.on(&Event::Images { images: &names });
}

/// How many at a time, and whether the first failure is the end.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub(super) at_once: usize,
    pub(super) fail_fast: bool,
}

/// Does `f` with each image that came so far, until done or until `cancel`, which makes `cancelled` true; nothing, if it is
/// that already.
pub(super) async fn each<T, R, F: Future<Output = Result<R>>>(
    images: Images<T>,
    pace: Pace,
    listener: &dyn Listener,
    mut cancel: Pin<&mut impl Future<Output = ()>>,
    cancelled: &mut bool,
    f: impl Fn(T) -> F,
) -> Images<R> {
    let mut results: Images<R> = Vec::new();
    let mut todo = Vec::new();
    for (i, (name, image)) in images.into_iter().enumerate() {
        results.push(match image {
            Some(Ok(image)) => {
                todo.push((i, image));
                (name, None)
            }
            Some(Err(failure)) => (name, Some(Err(failure))),
            None => (name, None),
        });
    }
    let mut stop = pace.fail_fast && results.iter().any(|(_, result)| matches!(result, Some(Err(_))));
    let f = &f;
    let mut running =
        iter(todo.into_iter().map(|(i, image)| async move { (i, f(image).await) })).buffer_unordered(pace.at_once);
    while !*cancelled && !stop {
        let (i, result) = tokio::select! {
            next = running.next() => match next {
                Some(done) => done,
                None => break,
            },
            () = &mut cancel => {
                *cancelled = true;
                break;
            }
        };
        let result = result.map_err(|error| Failure::new(&error));
        if let Err(Failure { kind, message }) = &result {
            listener.on(&Event::ImageFailed { image: &results[i].0, kind: *kind, error: message });
            stop = pace.fail_fast;
        }
        results[i].1 = Some(result);
    }
    drop(running);
    results
}
