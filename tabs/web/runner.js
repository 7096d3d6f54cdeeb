// The worker, for a page: await runner.load(model), then runner.ask(…), compute(…) and write(…).

export class Runner {
  constructor() {
    this.calls = new Map();
    this.begin();
  }

  begin() {
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data: { id, part, result, error } }) => {
      const call = this.calls.get(id);
      if (part !== undefined) call.part(part);
      else this.end(id, error === undefined ? undefined : new Error(error), result);
    };
    this.worker.onerror = (event) => { // one of its scripts did not load: the next call begins a new one
      event.preventDefault();
      this.worker = undefined;
      for (const id of [...this.calls.keys()]) this.end(id, new Error(event.message || "a script did not load"));
    };
  }

  end(id, error, result) {
    const { resolve, reject } = this.calls.get(id);
    this.calls.delete(id);
    if (error) reject(error);
    else resolve(result);
  }

  call(kind, job, part = () => {}) {
    if (!this.worker) this.begin();
    this.last = (this.last ?? 0) + 1;
    const id = this.last;
    return new Promise((resolve, reject) => {
      this.calls.set(id, { part, resolve, reject });
      this.worker.postMessage({ id, kind, ...job });
    });
  }

  /** Fetch what is needed to run a model, once; `told` hears how many bytes have come. */
  load(model, told) {
    return this.call("load", { model }, told);
  }

  /** Answer one line: see the worker's ask. */
  ask(job) {
    return this.call("ask", job);
  }

  /** Answer the graph's own inputs: see the worker's compute. */
  compute(job) {
    return this.call("compute", job);
  }

  /** The tokens of a text. */
  read(job) {
    return this.call("read", job);
  }

  /** Write a text; `told` hears how far it is. */
  write(job, told) {
    return this.call("write", job, told);
  }

  /** End the text that is being written. */
  stop() {
    this.worker?.postMessage({ kind: "stop" });
  }
}
