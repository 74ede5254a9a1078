//! Streams, events and graphs: in which order work is done.
//!
//! Nothing runs when it is put into a stream. It runs when its end is waited for or asked about, together with what it waits
//! for of other streams.

use std::collections::{HashMap, VecDeque};

/// A piece of work, whatever it is.
#[derive(Clone)]
pub enum Op<W> {
    Work(W),
    /// An event is reached that was recorded so many times.
    Record(u64, u64),
    /// Nothing behind this runs before an event was reached so many times.
    Wait(u64, u64),
}

struct Stream<W> {
    queue: VecDeque<Op<W>>,
    /// What is put in now is kept for a graph.
    capture: Option<Vec<Op<W>>>,
}

#[derive(Default)]
struct Event {
    recorded: u64,
    reached: u64,
    /// Where it was recorded last.
    stream: u64,
    /// Nobody has a handle to it any more; what waits for it still does.
    destroyed: bool,
}

/// All streams and events of a GPU, by numbers that are never used again.
pub struct Queues<W> {
    streams: HashMap<u64, Stream<W>>,
    events: HashMap<u64, Event>,
    next: u64,
}

/// Why something can't be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NoSuch,
    Capturing,
    NotCapturing,
}

impl<W: Clone> Queues<W> {
    pub fn new() -> Self {
        Self {
            streams: HashMap::new(),
            events: HashMap::new(),
            next: 1,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn add_stream(&mut self) -> u64 {
        let id = self.number();
        let stream = Stream {
            queue: VecDeque::new(),
            capture: None,
        };
        self.streams.insert(id, stream);
        id
    }

    pub fn add_event(&mut self) -> u64 {
        let id = self.number();
        self.events.insert(id, Event::default());
        id
    }

    /// Forgets a stream, with what is still in it: whoever destroys one has waited for it.
    pub fn remove_stream(&mut self, id: u64) -> Result<(), Refusal> {
        self.streams.remove(&id).map(|_| ()).ok_or(Refusal::NoSuch)
    }

    pub fn remove_event(&mut self, id: u64) -> Result<(), Refusal> {
        self.event(id)?.destroyed = true;
        Ok(())
    }

    fn stream(&mut self, id: u64) -> Result<&mut Stream<W>, Refusal> {
        self.streams.get_mut(&id).ok_or(Refusal::NoSuch)
    }

    fn event(&mut self, id: u64) -> Result<&mut Event, Refusal> {
        let event = self.events.get_mut(&id).filter(|e| !e.destroyed);
        event.ok_or(Refusal::NoSuch)
    }

    pub fn push(&mut self, stream: u64, work: W) -> Result<(), Refusal> {
        let stream = self.stream(stream)?;
        match &mut stream.capture {
            Some(kept) => kept.push(Op::Work(work)),
            None => stream.queue.push_back(Op::Work(work)),
        }
        Ok(())
    }

    /// All of a graph.
    pub fn push_graph(&mut self, stream: u64, graph: &[Op<W>]) -> Result<(), Refusal> {
        let stream = self.stream(stream)?;
        if stream.capture.is_some() {
            return Err(Refusal::Capturing);
        }
        stream.queue.extend(graph.iter().cloned());
        Ok(())
    }

    pub fn record(&mut self, stream: u64, event: u64) -> Result<(), Refusal> {
        if self.stream(stream)?.capture.is_some() {
            return Err(Refusal::Capturing);
        }
        let e = self.event(event)?;
        e.recorded += 1;
        e.stream = stream;
        let op = Op::Record(event, e.recorded);
        self.stream(stream)?.queue.push_back(op);
        Ok(())
    }

    pub fn wait_for(&mut self, stream: u64, event: u64) -> Result<(), Refusal> {
        let recorded = self.event(event)?.recorded;
        let stream = self.stream(stream)?;
        if stream.capture.is_some() {
            return Err(Refusal::Capturing);
        }
        stream.queue.push_back(Op::Wait(event, recorded));
        Ok(())
    }

    pub fn begin_capture(&mut self, stream: u64) -> Result<(), Refusal> {
        let stream = self.stream(stream)?;
        if stream.capture.is_some() {
            return Err(Refusal::Capturing);
        }
        stream.capture = Some(vec![]);
        Ok(())
    }

    pub fn end_capture(&mut self, stream: u64) -> Result<Vec<Op<W>>, Refusal> {
        let kept = self.stream(stream)?.capture.take();
        kept.ok_or(Refusal::NotCapturing)
    }

    /// Whether everything in a stream has run.
    pub fn is_idle(&mut self, stream: u64) -> Result<bool, Refusal> {
        Ok(self.stream(stream)?.queue.is_empty())
    }

    /// Whether an event was reached as often as it was recorded; true of one that never was.
    pub fn is_reached(&mut self, event: u64) -> Result<bool, Refusal> {
        let event = self.event(event)?;
        Ok(event.reached >= event.recorded)
    }

    /// Where an event was recorded last.
    pub fn recorded_in(&mut self, event: u64) -> Result<u64, Refusal> {
        Ok(self.event(event)?.stream)
    }

    /// The next piece of work that brings a stream forward, its own or of a stream that it waits for; none where it has come
    /// to its end. The caller runs it.
    pub fn next_work(&mut self, stream: u64) -> Result<Option<W>, Refusal> {
        let mut at = stream;
        loop {
            let Some(op) = self.stream(at)?.queue.front().cloned() else {
                return match at == stream {
                    true => Ok(None),
                    // What it waited for is in no stream any more.
                    false => Err(Refusal::NoSuch),
                };
            };
            match op {
                Op::Work(work) => {
                    self.stream(at)?.queue.pop_front();
                    return Ok(Some(work));
                }
                Op::Record(event, times) => {
                    self.stream(at)?.queue.pop_front();
                    if let Some(event) = self.events.get_mut(&event) {
                        event.reached = event.reached.max(times);
                    }
                    // Back to the stream that this was about.
                    at = stream;
                }
                Op::Wait(event, times) => match self.events.get(&event) {
                    Some(e) if e.reached < times => at = e.stream,
                    _ => {
                        self.stream(at)?.queue.pop_front();
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queues: &mut Queues<&'static str>, stream: u64) -> Vec<&'static str> {
        let mut all = vec![];
        while let Some(work) = queues.next_work(stream).unwrap() {
            all.push(work);
        }
        all
    }

    #[test]
    fn work_runs_in_the_order_of_its_stream_and_of_events() {
        let mut q = Queues::new();
        let (a, b) = (q.add_stream(), q.add_stream());
        let e = q.add_event();
        q.push(a, "a1").unwrap();
        q.record(a, e).unwrap();
        q.push(a, "a2").unwrap();
        q.push(b, "b1").unwrap();
        q.wait_for(b, e).unwrap();
        q.push(b, "b2").unwrap();
        assert!(!q.is_reached(e).unwrap());
        assert_eq!(drain(&mut q, b), ["b1", "a1", "b2"]);
        assert!(q.is_reached(e).unwrap());
        assert!(q.is_idle(b).unwrap() && !q.is_idle(a).unwrap());
        assert_eq!(drain(&mut q, a), ["a2"]);
    }

    #[test]
    fn a_wait_is_for_what_was_recorded_before_it() {
        let mut q = Queues::new();
        let (a, b) = (q.add_stream(), q.add_stream());
        let e = q.add_event();
        // Never recorded: nothing to wait for.
        q.wait_for(b, e).unwrap();
        q.push(b, "b").unwrap();
        q.push(a, "a").unwrap();
        q.record(a, e).unwrap();
        assert_eq!(drain(&mut q, b), ["b"]);
    }

    #[test]
    fn a_wait_outlives_its_event() {
        let mut q = Queues::new();
        let (a, b) = (q.add_stream(), q.add_stream());
        let e = q.add_event();
        q.push(a, "a").unwrap();
        q.record(a, e).unwrap();
        q.wait_for(b, e).unwrap();
        q.push(b, "b").unwrap();
        q.remove_event(e).unwrap();
        assert_eq!(q.record(a, e), Err(Refusal::NoSuch));
        assert_eq!(drain(&mut q, b), ["a", "b"]);
    }

    #[test]
    fn a_graph_runs_as_often_as_it_is_launched() {
        let mut q = Queues::new();
        let a = q.add_stream();
        q.begin_capture(a).unwrap();
        q.push(a, "1").unwrap();
        q.push(a, "2").unwrap();
        assert_eq!(q.begin_capture(a), Err(Refusal::Capturing));
        let graph = q.end_capture(a).unwrap();
        assert!(q.end_capture(a).is_err());
        assert!(q.is_idle(a).unwrap());
        q.push_graph(a, &graph).unwrap();
        q.push_graph(a, &graph).unwrap();
        assert_eq!(drain(&mut q, a), ["1", "2", "1", "2"]);
    }

    #[test]
    fn what_was_destroyed_is_refused() {
        let mut q = Queues::<()>::new();
        let a = q.add_stream();
        q.remove_stream(a).unwrap();
        assert_eq!(q.remove_stream(a), Err(Refusal::NoSuch));
        assert_eq!(q.push(a, ()), Err(Refusal::NoSuch));
        assert_eq!(q.remove_event(9), Err(Refusal::NoSuch));
    }
}
