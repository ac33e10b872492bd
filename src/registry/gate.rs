//! One budget for a host, shared by all who ask it: how many at once, how often, and not at all while it asks for patience.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::patience::backoff;
use super::{LONGEST_PATIENCE, lock};

/// Limits of a host's budget.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Requests under way, with their bodies.
    pub(super) at_once: usize,
    /// Time between the beginnings of two requests.
    pub(super) interval: Duration,
}

/// A host's budget.
pub(super) struct Gate {
    limits: Limits,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    under_way: usize,
    /// How many may be under way: halved when the host refuses, and one more each time that as many went well.
    allowed: usize,
    went_well: usize,
    closed_until: Option<Instant>,
    next: Instant,
    /// Refusals since the last success.
    refusals: u32,
}

enum Step {
    /// A request may begin at that time.
    Begin(Turn, Instant),
    Closed(Instant),
    Full,
}

/// The right to one request, until dropped.
pub(super) struct Turn(Arc<Gate>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.state().under_way -= 1;
        self.0.changed.notify_one();
    }
}

impl Gate {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let state = State {
            under_way: 0,
            allowed: limits.at_once,
            went_well: 0,
            closed_until: None,
            next: Instant::now(),
            refusals: 0,
        };
        Arc::new(Self { limits, state: Mutex::new(state), changed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits until a request may begin.
    pub(super) async fn turn(self: &Arc<Self>) -> Turn {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.step() {
                Step::Begin(turn, at) => {
                    sleep_until(at).await;
                    return turn;
                }
                Step::Closed(until) => sleep_until(until).await,
                Step::Full => changed.await,
            }
        }
    }

    fn step(self: &Arc<Self>) -> Step {
        let mut state = self.state();
        let now = Instant::now();
        if let Some(until) = state.closed_until.filter(|until| *until > now) {
            return Step::Closed(until);
        }
        if state.under_way >= state.allowed {
            return Step::Full;
        }
        state.under_way += 1;
        let at = state.next.max(now);
        state.next = at + self.limits.interval;
        Step::Begin(Turn(self.clone()), at)
    }

    /// Whether a request could begin now.
    pub(super) fn is_free(&self) -> bool {
        let state = self.state();
        let now = Instant::now();
        state.closed_until.is_none_or(|until| until <= now) && state.next <= now && state.under_way < state.allowed
    }

    /// Whether the host asked for patience.
    pub(super) fn is_closed(&self) -> bool {
        self.state().closed_until.is_some_and(|until| until > Instant::now())
    }

    /// The host answered as it should.
    pub(super) fn went_well(&self) {
        let mut state = self.state();
        state.refusals = 0;
        if state.allowed < self.limits.at_once {
            state.went_well += 1;
            if state.went_well >= state.allowed {
                state.went_well = 0;
                state.allowed += 1;
                drop(state);
                self.changed.notify_one();
            }
        }
    }

    /// The host refused, and says how long to wait, or does not. How long nobody will ask it now; nothing when others were
    /// refused at the same time.
    pub(super) fn refused(&self, retry_after: Option<Duration>) -> Option<Duration> {
        let mut state = self.state();
        let now = Instant::now();
        let known = state.closed_until.is_some_and(|until| until > now);
        if !known {
            state.allowed = (state.allowed / 2).max(1);
            state.went_well = 0;
            state.refusals += 1;
        }
        let wait = retry_after.unwrap_or_else(|| backoff(state.refusals));
        if wait > LONGEST_PATIENCE {
            // Nobody waits for that: whoever asks is refused, and fails.
            return None;
        }
        let until = now + wait;
        // What the host says counts; a guess does not lengthen what is known.
        if known && (retry_after.is_none() || state.closed_until >= Some(until)) {
            return None;
        }
        state.closed_until = Some(until);
        Some(wait)
    }
}

/// At most so many bytes a second, of all that come.
pub(super) struct Bandwidth {
    bytes_a_second: Option<u64>,
    /// When what came until now is paid for.
    paid: Mutex<Instant>,
}

impl Bandwidth {
    /// What may come at once after a pause.
    const BURST: Duration = Duration::from_millis(100);

    pub(super) fn new(bytes_a_second: Option<u64>) -> Self {
        Self { bytes_a_second, paid: Mutex::new(Instant::now()) }
    }

    /// Pays for bytes that came.
    pub(super) async fn pay(&self, bytes: usize) {
        let Some(rate) = self.bytes_a_second else { return };
        let until = {
            let mut paid = lock(&self.paid);
            let nanos = bytes as u128 * 1_000_000_000 / u128::from(rate.max(1));
            let now = Instant::now();
            let begin = (*paid).max(now.checked_sub(Self::BURST).unwrap_or(now));
            *paid = begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            *paid
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(at_once: usize, interval: Duration) -> Arc<Gate> {
        Gate::new(Limits { at_once, interval })
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_as_allowed_and_fewer_after_a_refusal() {
        let gate = gate(4, Duration::ZERO);
        let mut turns = Vec::new();
        for _ in 0..4 {
            turns.push(gate.turn().await);
        }
        assert!(!gate.is_free());
        drop(turns);
        assert_eq!(gate.refused(Some(Duration::from_secs(3))), Some(Duration::from_secs(3)));
        assert_eq!(gate.refused(Some(Duration::from_secs(2))), None);
        assert!(gate.is_closed());
        let before = Instant::now();
        let (first, second) = (gate.turn().await, gate.turn().await);
        assert_eq!(before.elapsed().as_secs(), 3);
        assert!(!gate.is_free(), "half of four");
        gate.went_well();
        gate.went_well();
        assert!(gate.is_free(), "one more again");
        drop((first, second));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_was_waited_for_comes() {
        let gate = gate(1, Duration::ZERO);
        let turn = gate.turn().await;
        let other = gate.clone();
        let waiting = tokio::spawn(async move { drop(other.turn().await) });
        tokio::task::yield_now().await;
        drop(turn);
        waiting.await.expect("it came");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_a_second() {
        let gate = gate(100, Duration::from_millis(100));
        let before = Instant::now();
        for _ in 0..11 {
            drop(gate.turn().await);
        }
        assert_eq!(before.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_take_their_time() {
        let bandwidth = Bandwidth::new(Some(1000));
        let before = Instant::now();
        for _ in 0..10 {
            bandwidth.pay(500).await;
        }
        assert!((4900..=5001).contains(&before.elapsed().as_millis()), "{:?}", before.elapsed());
        Bandwidth::new(None).pay(usize::MAX).await;
    }
}
