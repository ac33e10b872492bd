//! How often, and when, something is asked for again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::{Instant, sleep};

use super::{Error, Notice, Notify, Result};

const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A transfer that came on by so many bytes is worth all tries again.
const PROGRESS: u64 = 64 << 10;

/// Tries of one request, or of one transfer since it last came on.
pub(super) struct Patience {
    tries: u32,
    /// Of them in a row, those by failures that are worth few.
    few: u32,
    most: u32,
    /// Bytes since the last failure.
    came: u64,
    began: Instant,
    notify: Notify,
}

impl Patience {
    pub(super) fn new(most: u32, notify: Notify) -> Self {
        Self { tries: 0, few: 0, most, came: 0, began: Instant::now(), notify }
    }

    /// So many more bytes came.
    pub(super) fn progress(&mut self, bytes: u64) {
        self.came += bytes;
        if self.came >= PROGRESS {
            (self.tries, self.few, self.came, self.began) = (0, 0, 0, Instant::now());
        }
    }

    /// Takes a failure, and comes back when it is time for the next try.
    ///
    /// # Errors
    /// The failure, when there is nothing to be gained by waiting, or no more patience.
    pub(super) async fn after(&mut self, error: Error) -> Result<()> {
        self.tries += 1;
        self.came = 0;
        if !error.is_passing() {
            return Err(error);
        }
        let most = error.tries(self.most);
        self.few = if most < self.most { self.few + 1 } else { 0 };
        if self.tries >= self.most || (most < self.most && self.few >= most) {
            return Err(Error::GaveUp { tries: self.tries, elapsed: self.began.elapsed(), source: Box::new(error) });
        }
        // Who was told when to come again waits at the gate, together with the others.
        let told =
            matches!(error, Error::Limited { retry_after, .. } if retry_after.is_none_or(|wait| wait >= FIRST_WAIT));
        let wait = if told { Duration::ZERO } else { backoff(self.tries) };
        (self.notify)(&Notice::Again { error: &error, tries: self.tries, of: most, wait });
        sleep(wait).await;
        Ok(())
    }
}

/// Twice as long each time, and never quite the same: between half and all of it.
pub(super) fn backoff(failures: u32) -> Duration {
    let whole = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_WAIT);
    let chance = RandomState::new().hash_one(()) % 1024;
    whole / 2 + whole / 2 * u32::try_from(chance).unwrap_or(0) / 1024
}

/// How long the server asks to wait: seconds, or until a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    Some(until.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let mut last = Duration::ZERO;
        for failures in 1..8 {
            let wait = backoff(failures);
            let whole = FIRST_WAIT * (1 << (failures - 1));
            assert!((whole / 2..=whole.min(LONGEST_WAIT)).contains(&wait), "{failures}: {wait:?}");
            assert!(wait >= last / 2);
            last = wait;
        }
        assert!(backoff(u32::MAX) <= LONGEST_WAIT);
        assert!((0..20).map(|_| backoff(3)).collect::<std::collections::HashSet<_>>().len() > 1);
    }

    #[test]
    fn seconds_and_dates() {
        let after = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().expect("a value"));
            retry_after(&headers)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_mins(1));
        assert!((58..=60).contains(&after(&soon).expect("a date").as_secs()));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
    }
}
