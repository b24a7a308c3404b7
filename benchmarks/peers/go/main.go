// Command go-lock measures the lock of etcd's own Go recipe and prints one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

const sessionTTL = 15

type report struct {
	Cycles        int     `json:"cycles"`
	Seconds       float64 `json:"seconds"`
	Handoffs      int     `json:"handoffs"`
	LongestWaitMs float64 `json:"longest_wait_ms"`
	P99WaitMs     float64 `json:"p99_wait_ms"`
	BusiestShare  float64 `json:"busiest_share"`
}

// tally is what the workers did; its mutex is held only to count, never across a call.
type tally struct {
	sync.Mutex
	perWorker []int
	last      int
	handoffs  int
	waits     []time.Duration
}

func (t *tally) granted(worker int, waited time.Duration) {
	t.Lock()
	defer t.Unlock()
	t.perWorker[worker]++
	if t.last >= 0 && t.last != worker {
		t.handoffs++
	}
	t.last = worker
	t.waits = append(t.waits, waited)
}

func (t *tally) report(elapsed time.Duration) report {
	cycles, busiest := 0, 0
	for _, count := range t.perWorker {
		cycles += count
		busiest = max(busiest, count)
	}
	slices.Sort(t.waits)
	return report{
		Cycles:        cycles,
		Seconds:       elapsed.Seconds(),
		Handoffs:      t.handoffs,
		LongestWaitMs: milliseconds(t.waits, 1),
		P99WaitMs:     milliseconds(t.waits, 0.99),
		BusiestShare:  float64(busiest) / float64(max(cycles, 1)),
	}
}

func milliseconds(sorted []time.Duration, quantile float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[int(quantile*float64(len(sorted)-1))].Microseconds()) / 1000
}

func openSession(endpoint string) *concurrency.Session {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		log.Fatal(err)
	}
	session, err := concurrency.NewSession(client, concurrency.WithTTL(sessionTTL))
	if err != nil {
		log.Fatal(err)
	}
	return session
}

// mutexes gives each worker its lock: its own name in one shared session, or one name in a session and client each.
func mutexes(mode, endpoint string, workers int) ([]*concurrency.Mutex, func()) {
	prefix := fmt.Sprintf("go-lock/%d/", os.Getpid())
	locks := make([]*concurrency.Mutex, workers)
	var sessions []*concurrency.Session
	switch mode {
	case "uncontended":
		sessions = append(sessions, openSession(endpoint))
		for i := range locks {
			locks[i] = concurrency.NewMutex(sessions[0], fmt.Sprintf("%s%d", prefix, i))
		}
	case "contended":
		for i := range locks {
			session := openSession(endpoint)
			sessions = append(sessions, session)
			locks[i] = concurrency.NewMutex(session, prefix+"one")
		}
	default:
		log.Fatalf("unknown -mode %q: uncontended or contended", mode)
	}
	return locks, func() {
		for _, session := range sessions {
			session.Close()
			session.Client().Close()
		}
	}
}

func cycle(ctx context.Context, lock *concurrency.Mutex, granted func(time.Duration)) {
	asked := time.Now()
	if err := lock.Lock(ctx); err != nil {
		log.Fatal(err)
	}
	granted(time.Since(asked))
	if err := lock.Unlock(ctx); err != nil {
		log.Fatal(err)
	}
}

func main() {
	endpoint := flag.String("endpoint", "http://127.0.0.1:2379", "etcd's address")
	mode := flag.String("mode", "uncontended", "uncontended or contended")
	workers := flag.Int("workers", 1, "workers")
	seconds := flag.Float64("seconds", 2, "how long to run")
	flag.Parse()

	ctx := context.Background()
	locks, closeAll := mutexes(*mode, *endpoint, *workers)
	defer closeAll()
	for _, lock := range locks {
		cycle(ctx, lock, func(time.Duration) {}) // one each to warm up
	}

	counts := &tally{perWorker: make([]int, *workers), last: -1}
	start := time.Now()
	deadline := start.Add(time.Duration(*seconds * float64(time.Second)))
	var group sync.WaitGroup
	for worker, lock := range locks {
		group.Go(func() {
			for time.Now().Before(deadline) {
				cycle(ctx, lock, func(waited time.Duration) { counts.granted(worker, waited) })
			}
		})
	}
	group.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(counts.report(time.Since(start))); err != nil {
		log.Fatal(err)
	}
}
