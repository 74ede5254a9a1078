//! Workers are processes that only write down what they are told; what they tell is made up here.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::super::message::{self, News, Task};
use super::super::process::Program;
use super::*;
use crate::runner::DeviceKind;

const ROOT: &str = "0123";

struct World {
    remote: Remote,
    /// All orders of all workers, one after the other.
    orders: PathBuf,
    folder: tempfile::TempDir,
}

impl World {
    /// The first worker serves.
    fn new() -> World {
        let folder = tempfile::tempdir().expect("the system has a folder for temporary files");
        let orders = folder.path().join("orders");
        let program = Program {
            path: "/bin/sh".into(),
            args: vec!["-c".into(), format!("exec cat >> '{}'", orders.display())],
        };
        let supervise = Supervise {
            program,
            hang_timeout: Some(Duration::from_secs(50)),
            log: |_| {},
        };
        let service = Service {
            setup: Setup {
                bundle: b"model.fib".to_vec(),
                device: DeviceKind::Own,
                threads: None,
                kv_memory: None,
                prefix_cache: true,
                spec: None,
                token_budget: None,
                stability: Some(Stability::Fast),
            },
            root: ROOT.into(),
            admission: Admission {
                context: 100,
                vocab: 50,
                kv_blocks: 0,
            },
            max_running: 4,
            queue: 5,
            gpu: true,
            stability: Some(Stability::Fast),
        };
        let mut world = World {
            remote: Remote::new(service, &supervise, Arc::new(|_, _| {})),
            orders,
            folder,
        };
        let process = world.remote.start().expect("there is a shell");
        world.remote.link = Link::Opening(process, Instant::now());
        world.ready();
        world
    }

    fn hear(&mut self, report: Report) {
        self.remote.hear(self.remote.worker, Heard::Report(report));
    }

    fn ready(&mut self) {
        self.hear(Report::Ready {
            kv_blocks: 10,
            root: ROOT.into(),
        });
    }

    fn add(&mut self, choices: u32) -> RequestId {
        let request = Request {
            prompt: vec![1, 2, 3],
            choices,
            ..Request::default()
        };
        self.remote.add(request).expect("there is room")
    }

    /// A step that ended well: `stats` are the worker's.
    fn step(&mut self, news: Vec<News>, taken: u64, stats: Stats) {
        self.hear(Report::Step {
            news,
            stats,
            completed: 1,
            taken,
        });
    }

    /// It dies, and the next one serves at once.
    fn die(&mut self, death: Death) {
        self.remote.hear(self.remote.worker, Heard::Died(death));
        assert_eq!(self.remote.advance_now(), Some(true), "a pause of none");
        self.ready();
    }

    /// What all workers were told, once the present one has read everything.
    fn told_workers(self) -> Vec<Order> {
        let World {
            remote,
            orders,
            folder: _folder,
        } = self;
        drop(remote);
        read(&orders)
    }
}

fn read(orders: &Path) -> Vec<Order> {
    let mut from = BufReader::new(File::open(orders).expect("a worker has started"));
    std::iter::from_fn(|| message::receive(&mut from).expect("orders are whole")).collect()
}

impl Remote {
    /// Starts the worker that is due; whether one was. None: there is none to come.
    fn advance_now(&mut self) -> Option<bool> {
        self.advance();
        match self.link {
            Link::Opening(..) => Some(true),
            Link::Serving(_) | Link::Pausing(_) => Some(false),
            Link::Failed => None,
        }
    }
}

fn token(key: u64, token: u32) -> News {
    News::Token {
        key,
        choice: 0,
        token,
        logprobs: None,
        cached: None,
    }
}

fn finished(key: u64) -> News {
    News::Finished {
        key,
        choice: 0,
        reason: FinishReason::Length,
        cached: 0,
    }
}

fn submitted(orders: &[Order]) -> Vec<&Task> {
    let tasks = orders.iter().filter_map(|order| match order {
        Order::Submit(task) => Some(&**task),
        _ => None,
    });
    tasks.collect()
}

fn tokens(told: &[Told]) -> Vec<u32> {
    let token = |told: &Told| match told {
        Told::Engine(Event::Token { token, .. }) => Some(*token),
        _ => None,
    };
    told.iter().filter_map(token).collect()
}

const KILL: Death = Death::Signal(libc::SIGKILL);

fn generated(generated_tokens: u64, steps: u64) -> Stats {
    Stats {
        generated_tokens,
        steps,
        ..Stats::default()
    }
}

#[test]
fn each_token_counts_once_whatever_workers_counted() {
    let mut world = World::new();
    world.add(1);
    world.step(vec![token(0, 7)], 1, generated(1, 3));
    // This worker drew two more, and died before it told of the second.
    world.step(vec![token(0, 8)], 1, generated(3, 4));
    world.die(KILL);
    let stats = world.remote.stats();
    assert_eq!((stats.generated_tokens, stats.steps), (2, 4));
    assert_eq!(stats.prompt_tokens, 3);
    // Its first one again, which nobody asks for any more, and the task's next.
    let news = vec![token(0, 9), token(1, 9), token(1, 10), finished(1)];
    world.step(news, 1, generated(2, 5));
    let stats = world.remote.stats();
    assert_eq!((stats.generated_tokens, stats.steps), (4, 9));
    assert_eq!(stats.prompt_tokens, 3, "it was asked once");
    assert_eq!(tokens(&world.remote.take_events()), [7, 8, 9, 10]);
    // What is told of an answer that has ended is not counted.
    world.step(vec![token(1, 11)], 1, generated(3, 6));
    assert_eq!(world.remote.stats().generated_tokens, 4);
    let orders = world.told_workers();
    assert!(matches!(orders[0], Order::Open(_)));
    let answered: Vec<_> = submitted(&orders).iter().map(|t| &t.answered).collect();
    assert_eq!(answered, [&vec![], &vec![7, 8]]);
}

#[test]
fn what_an_old_worker_tells_is_not_heard() {
    let mut world = World::new();
    world.add(1);
    let old = world.remote.worker;
    world.die(KILL);
    let late = Report::Step {
        news: vec![token(0, 7), token(1, 7)],
        stats: generated(9, 9),
        completed: 9,
        taken: 1,
    };
    world.remote.hear(old, Heard::Report(late));
    assert_eq!(world.remote.stats().generated_tokens, 0);
    assert_eq!(world.remote.take_events(), []);
    // Nor is its death, a second time.
    world.remote.hear(old, Heard::Died(KILL));
    let supervision = world.remote.supervision().expect("it is supervised");
    assert!(!supervision.restarting);
    assert_eq!((supervision.restarts, supervision.resumed_requests), (1, 1));
}

#[test]
fn the_queue_is_what_the_worker_said_and_was_given_since() {
    let mut world = World::new();
    for _ in 0..5 {
        world.add(1);
    }
    let busy = world.remote.add(Request {
        prompt: vec![1],
        ..Request::default()
    });
    assert!(matches!(busy, Err(Error::Busy(text)) if text.starts_with("5 requests")));
    // It has taken four, of which one waits; the fifth is on its way.
    let stats = Stats {
        waiting: 1,
        ..Stats::default()
    };
    world.step(vec![], 4, stats);
    assert_eq!(world.remote.waiting, 2);
    for _ in 0..3 {
        world.add(1);
    }
    assert_eq!(world.remote.waiting, 5);
    assert_eq!(submitted(&world.told_workers()).len(), 8);
}

#[test]
fn gauges_are_the_present_workers() {
    let mut world = World::new();
    world.add(2);
    let stats = Stats {
        running: 2,
        kv_blocks_total: 10,
        kv_blocks_free: 3,
        preemptions: 4,
        ..Stats::default()
    };
    world.step(vec![], 1, stats);
    assert_eq!(
        world.remote.stats(),
        Stats {
            prompt_tokens: 3,
            ..stats
        }
    );
    world.remote.hear(1, Heard::Died(KILL));
    let between = world.remote.stats();
    assert_eq!((between.running, between.waiting), (0, 2));
    assert_eq!((between.kv_blocks_free, between.preemptions), (10, 4));
    world.remote.advance();
    world.ready();
    world.step(
        vec![],
        1,
        Stats {
            preemptions: 1,
            ..stats
        },
    );
    assert_eq!(world.remote.stats().preemptions, 5);
}

#[test]
fn a_fault_is_the_cause_and_makes_the_next_worker_stricter() {
    let mut world = World::new();
    world.add(1);
    world.hear(Report::Fault("illegal access".into()));
    world.die(Death::Exit(0));
    let supervision = world.remote.supervision().expect("it is supervised");
    assert_eq!(supervision.device_faults, 1);
    assert_eq!(supervision.stability, Some(Stability::Balanced));
    let orders = world.told_workers();
    let profile = |order: &Order| match order {
        Order::Open(setup) => setup.stability,
        _ => None,
    };
    let profiles: Vec<_> = orders.iter().filter_map(profile).collect();
    assert_eq!(profiles, [Stability::Fast, Stability::Balanced]);
}

#[test]
fn another_bundle_in_the_place_of_the_first_ends_the_server() {
    let mut world = World::new();
    let id = world.add(1);
    world.remote.hear(1, Heard::Died(KILL));
    world.remote.advance();
    world.hear(Report::Ready {
        kv_blocks: 10,
        root: "4567".into(),
    });
    let told = world.remote.take_events();
    assert!(matches!(
        &told[..],
        [Told::Engine(Event::Finished { id: ended, reason: FinishReason::Error(text), .. })]
            if *ended == id && text.contains("model.fib is not the bundle any more")
    ));
    assert!(matches!(
        world.remote.add(Request {
            prompt: vec![1],
            ..Request::default()
        }),
        Err(Error::User(_))
    ));
    assert_eq!(world.remote.advance_now(), None);
}

#[test]
fn a_worker_that_tells_nothing_is_killed_once() {
    let mut world = World::new();
    assert_eq!(
        world.remote.advance(),
        Wait::ForCommand,
        "it has nothing to do"
    );
    world.add(1);
    assert!(matches!(world.remote.advance(), Wait::AtMost(time) if time > Duration::from_secs(40)));
    let Link::Serving(serving) = &mut world.remote.link else {
        panic!("it serves");
    };
    serving.active = Instant::now() - Duration::from_secs(51);
    assert_eq!(
        world.remote.advance(),
        Wait::ForCommand,
        "its death will be heard of"
    );
    assert_eq!(
        world.remote.cause,
        Some(Death::Hung(Duration::from_secs(50)))
    );
    world.die(KILL);
    let supervision = world.remote.supervision().expect("it is supervised");
    assert_eq!(supervision.device_faults, 1, "drivers make processes hang");
}

#[test]
fn a_request_that_workers_die_of_comes_alone_and_is_given_up() {
    let mut world = World::new();
    let (bad, other) = (world.add(1), world.add(1));
    for _ in 0..2 {
        world.step(vec![], 0, Stats::default());
        world.die(Death::Signal(libc::SIGSEGV));
    }
    // Both are under suspicion: the older one is on trial, the other one waits, and so do those that come.
    let third = world.add(1);
    assert_eq!(world.remote.on_trial, Some(bad));
    assert_eq!(world.remote.held, [other, third]);
    world.step(vec![], 1, Stats::default());
    world.die(Death::Signal(libc::SIGSEGV));
    let told = world.remote.take_events();
    assert!(matches!(
        &told[..],
        [Told::Engine(Event::Finished { id, reason: FinishReason::Error(text), .. })]
            if *id == bad && text.contains("died 3 times with this request")
    ));
    // The next suspect comes behind the one that no worker died with, and gets on.
    assert_eq!(world.remote.on_trial, Some(other));
    let fourth = world.add(1);
    assert_eq!(world.remote.held, [fourth]);
    world.step(vec![token(6, 5)], 2, Stats::default());
    assert_eq!((world.remote.on_trial, world.remote.held.len()), (None, 0));
    assert_eq!(world.remote.stats().generated_tokens, 1);
}

#[test]
fn cancelling_is_told_to_whoever_has_the_task() {
    let mut world = World::new();
    let (one, two) = (world.add(1), world.add(2));
    world.remote.cancel(one);
    world.remote.cancel_choice(two, 1);
    let told = world.remote.take_events();
    assert_eq!(told.len(), 2);
    world.step(vec![token(0, 3)], 2, generated(1, 1));
    assert_eq!(world.remote.stats().generated_tokens, 0);
    let orders = world.told_workers();
    assert_eq!(&orders[3..], [Order::Cancel(0), Order::CancelChoice(1, 1)]);
}
