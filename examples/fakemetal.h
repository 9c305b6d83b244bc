/* The Metal part of fakeobjc.c: device, buffers, libraries, queues, encoders that really compute, copy and signal. */
enum { DISPATCH, COPY, FILL, SIGNAL, WAIT, SAMPLE, CALL };
typedef struct { uint32_t grid[3], group[3], groups[3]; void *buffers[31]; u64 memory[31]; const void *constants[64]; } Launch;
typedef struct { id pipeline, buffers[31]; u64 offsets[31], memory[31]; void *bytes[31]; } Bindings;
typedef struct Cmd { struct Cmd *next; int kind, by_threads; Bindings b; u64 grid[3], group[3]; id one, two; u64 from, to, n; void (*call)(struct Cmd *); u64 w[16]; } Cmd;
typedef struct Work { pthread_mutex_t m; pthread_cond_t c; id *items; size_t n, cap; int started, closed; } Work;
typedef struct { Cmd *first, **last; Block *done[64], *scheduled[64]; int ndone, nscheduled; } Commands;
static pthread_mutex_t fin = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t fin_c = PTHREAD_COND_INITIALIZER;
static u64 allocated, peak_samplers;
static int counter_mode, device_mode, fail_next, no_copy_zero;
static int families[64], nfamilies;
static id the_device, the_wrapper;
static int (*compile_hook)(const char *source, const char *macros, char *path, char *names, char *error, u64 size);
void fake_modes(int counters, int device, int fail) { counter_mode = counters, device_mode = device, fail_next = fail; }
void fake_compiler(void *hook) { compile_hook = hook; }
static int64_t clock_offset;
void fake_clock(int64_t offset) { clock_offset = offset; }       /* ns: to agree with a replayed Mac's clock */
static u64 nanoseconds(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000ULL + t.tv_nsec + clock_offset; }
static double seconds(void) { return nanoseconds() * 1e-9; }

/* device */
static id m_device(void)
{
    if (device_mode == 1) return fake_wrap(the_device, "MTLDebugDevice");
    if (device_mode == 2) return fake_wrap(the_device, "CaptureMTLDevice");
    if (device_mode == 3) return fake_wrap(the_device, "FakeProxy");
    if (device_mode == 4) return 0;
    return objc_retain(the_device);
}
id MTLCreateSystemDefaultDevice(void) { return m_device(); }
id MTLCopyAllDevices(void)
{
    if (device_mode == 4) return array_n(0, 0);
    id d = m_device(), a = array_n(&d, 1);
    objc_release(d);
    return a;
}
id MTLCommonCounterSetTimestamp, MTLCommonCounterTimestamp;
void fake_device(const char *name, u64 registry, u64 working, u64 longest, u64 threadgroup, const char *arch, const int *list, int n)
{
    id t = string_n(name, strlen(name)), k = make(objc_getClass("MTLArchitecture")), a = string_n(arch, strlen(arch));
    put_object(the_device, "name", t), put_int(the_device, "registryID", registry);
    put_int(the_device, "recommendedMaxWorkingSetSize", working), put_int(the_device, "maxBufferLength", longest);
    put_int(the_device, "maxThreadgroupMemoryLength", threadgroup), put_int(the_device, "hasUnifiedMemory", 1);
    put_int(the_device, "supportsRaytracing", 1), put_int(the_device, "maxArgumentBufferSamplerCount", 1024);
    put_object(k, "name", a), put_object(the_device, "architecture", k);
    objc_release(t), objc_release(a), objc_release(k);
    nfamilies = n < 64 ? n : 64;
    memcpy(families, list, sizeof *list * nfamilies);
}
static char v_family(id o, SEL s, int64_t f) { (void)o, (void)s; for (int i = 0; i < nfamilies; i++) if (families[i] == f) return 1; return 0; }
static T_QQQ v_threads(id o, SEL s) { (void)o, (void)s; return (T_QQQ){{1024, 1024, 1024}}; }
static u64 v_allocated(id o, SEL s) { (void)o, (void)s; return allocated; }
static void v_timestamps(id o, SEL s, u64 *cpu, u64 *gpu) { (void)o, (void)s; *cpu = *gpu = nanoseconds(); }

/* buffers: a = length, p = memory, b = options, c = address, q = deallocator block */
static id buffer_n(id parent, SEL s, void *memory, u64 n, u64 options, int own)
{
    if (!n) { offence("buffer of length 0"); return 0; }
    if (n > get_int(the_device, "maxBufferLength")) return 0;
    id o = new_child(parent, class_for(method_now(parent, s)->result), 0);
    static u64 next = 0x100000000ULL;
    o->a = n, o->b = options;
    o->p = memory;
    o->t[0] = own;
    o->c = __atomic_fetch_add(&next, (n + 0xffff) & ~0xffffULL, __ATOMIC_RELAXED);
    put_int(o, "resourceOptions", options), put_int(o, "storageMode", options >> 4 & 15), put_int(o, "cpuCacheMode", options & 15);
    put_int(o, "hazardTrackingMode", options >> 8 & 3);
    __atomic_add_fetch(&allocated, n, __ATOMIC_RELAXED);
    return o;
}
static void *page(u64 n) { void *p = 0; if (posix_memalign(&p, 16384, (n + 16383) & ~16383ULL)) return 0; memset(p, 0, n); return p; }
static id b_length(id o, SEL s, u64 n, u64 options) { return n > get_int(the_device, "maxBufferLength") ? 0 : buffer_n(o, s, page(n), n, options, 1); }
static id b_bytes(id o, SEL s, const void *from, u64 n, u64 options) { void *p = page(n); memcpy(p, from, n); return buffer_n(o, s, p, n, options, 1); }
static id b_nocopy(id o, SEL s, void *from, u64 n, u64 options, Block *block)
{
    if ((u64)from & 16383 || n & 16383) { offence("newBufferWithBytesNoCopy: pointer %p and length %lu must be whole pages", from, (unsigned long)n); return 0; }
    id b = buffer_n(o, s, from, n, options, 0);
    if (b && block) b->q = _Block_copy(block);
    return b;
}
static void b_free(id o)
{
    if (o->t[0]) free(o->p);
    __atomic_sub_fetch(&allocated, o->a, __ATOMIC_RELAXED);
    if (o->q) { Block *b = o->q; ((void (*)(void *, void *, u64))b->invoke)(b, o->p, o->a); _Block_release(b); }
    if (o->x) { o->x->b -= o->a; objc_release(o->x); }
}
static u64 b_get_length(id o, SEL s) { (void)s; return o->a; }
static void *b_contents(id o, SEL s) { (void)s; return (o->b >> 4 & 15) == 2 ? 0 : o->p; }
static u64 b_address(id o, SEL s) { (void)s; return o->c; }
static u64 b_allocated(id o, SEL s) { (void)s; return (o->a + 16383) & ~16383ULL; }

/* heaps: b = used */
static id h_length(id o, SEL s, u64 n, u64 options)
{
    u64 size = get_int(o, "size"), need = (n + 255) & ~255ULL;
    if (o->b + need > size) return 0;
    id b = buffer_n(o, s, page(n), n, options, 1);
    b->x = objc_retain(o);
    o->b += b->a;
    put_object(b, "heap", o);
    return b;
}
static u64 h_used(id o, SEL s) { (void)s; return o->b; }
static u64 h_available(id o, SEL s, u64 align) { (void)s, (void)align; return get_int(o, "size") - o->b; }

/* libraries: p = handle or 0, q = names "kernel f;vertex g;" */
static id library(id parent, const char *source, id options, id *error)
{
    static char *path, *names, *why;
    static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
    char macros[4096] = "";
    id made_of = options ? get_object(options, "preprocessorMacros") : 0;
    for (u64 i = 0; made_of && i < made_of->a; i++) {
        id v = ((id *)made_of->p)[i];
        size_t n = strlen(macros);
        if (object_getClass(v) == k_number) snprintf(macros + n, sizeof macros - n, "#define %s %g\n", text(((id *)made_of->q)[i]), v->t[0]);
        else snprintf(macros + n, sizeof macros - n, "#define %s %s\n", text(((id *)made_of->q)[i]), text(v));
    }
    pthread_mutex_lock(&m);
    if (!path) path = malloc(4096), names = malloc(65536), why = malloc(65536);
    path[0] = names[0] = why[0] = 0;
    int ok = compile_hook ? compile_hook(source, macros, path, names, why, 65536) : 0;
    id o = 0;
    if (!ok) { if (error) *error = error_make("MTLLibraryErrorDomain", 3, why[0] ? why : "program_source: no compiler"); }
    else {
        o = make(objc_getClass("AGXLibrary"));
        put_object(o, "device", parent);
        o->p = path[0] ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : 0;
        if (path[0] && !o->p) offence("dlopen: %s", dlerror());
        o->q = strdup(names);
        if (error && strstr(source, "FAKE_WARNING")) *error = error_make("MTLLibraryErrorDomain", 4, "program_source:1:1: warning: as asked");
    }
    pthread_mutex_unlock(&m);
    return o;
}
static id l_source(id o, SEL s, id source, id options, id *error) { (void)s; return library(o, text(source), options, error); }
static id l_url(id o, SEL s, id url, id *error)
{
    (void)s;
    id path = get_object(url, "path");
    FILE *f = path ? fopen(text(path), "rb") : 0;
    if (!f) { if (error) *error = error_make("MTLLibraryErrorDomain", 6, "library not found"); return 0; }
    char *b = calloc(1, 1 << 20);
    size_t n = fread(b, 1, (1 << 20) - 1, f);
    fclose(f);
    id l = 0;
    if (n > 4 && !memcmp(b, "MTLB", 4)) l = library(o, b + 4, 0, error);
    else if (error) *error = error_make("MTLLibraryErrorDomain", 1, "Invalid library file");
    free(b);
    return l;
}
static void *async(void *raw)
{
    void **a = raw;
    id device = a[0], source = a[1], options = a[2], error = 0;
    Block *b = a[3];
    void *token = objc_autoreleasePoolPush();
    id l = library(device, text(source), options, &error);
    ((void (*)(void *, id, id))b->invoke)(b, l, l ? 0 : error);
    objc_release(l), objc_release(device), objc_release(source), objc_release(options);
    _Block_release(b);
    objc_autoreleasePoolPop(token);
    free(pool.items), pool.items = 0, pool.n = pool.cap = 0;
    free(a);
    return 0;
}
static void l_async(id o, SEL s, id source, id options, Block *block)
{
    pthread_t t;
    (void)s;
    void **a = malloc(4 * sizeof *a);
    a[0] = objc_retain(o), a[1] = objc_retain(source), a[2] = objc_retain(options), a[3] = _Block_copy(block);
    pthread_create(&t, 0, async, a);
    pthread_detach(t);
}
static void l_free(id o) { free(o->q); }
static id l_names(id o, SEL s)
{
    id items[256]; u64 n = 0;
    (void)s;
    for (char *at = o->q; at && *at && n < 256;) { char *name = strchr(at, ' ') + 1, *end = strchr(name, ';'); items[n++] = string_n(name, end - name); at = end + 1; }
    id a = array_n(items, n);
    for (u64 i = 0; i < n; i++) objc_release(items[i]);
    return objc_autorelease(a);
}
static id function(id o, id name, id values)
{
    char key[256], *at;
    static const char *kinds[] = { "vertex", "fragment", "kernel", "", "visible", "intersection", "mesh", "object" };
    for (int k = 0; k < 8; k++) {
        snprintf(key, sizeof key, "%s %s;", kinds[k], text(name));
        at = o->q ? strstr(o->q, key) : 0;
        if (!kinds[k][0] || !at || (at != o->q && at[-1] != ';')) continue;
        id f = make(objc_getClass("AGXFunction"));
        put_object(f, "name", name), put_int(f, "functionType", k + 1), put_object(f, "device", get_object(o, "device"));
        f->x = objc_retain(o), f->y = values ? (id)send0(values, "copy") : 0;
        return f;
    }
    return 0;
}
static id f_name(id o, SEL s, id name) { (void)s; return function(o, name, 0); }
static id f_constants(id o, SEL s, id name, id values, id *error)
{
    (void)s;
    id f = function(o, name, values);
    if (!f && error) *error = error_make("MTLLibraryErrorDomain", 5, "Function was not found in the library");
    return f;
}
static void f_free(id o) { objc_release(o->x), objc_release(o->y); }
static u64 size_of_type(u64 t) { return t == 53 || t == 45 || t == 49 ? 1 : t == 16 || t == 37 || t == 41 ? 2 : t >= 3 && t <= 6 ? 4 * (t - 2) : t >= 29 && t <= 36 ? 4 * ((t - 29) % 4 + 1) : 4; }
static void c_index(id o, SEL s, const void *v, u64 type, u64 i) { char key[40]; unsigned char b[48] = {0}; (void)s; memcpy(b, v, size_of_type(type)); snprintf(key, sizeof key, "constant %lu", (unsigned long)i); put(o, S(key), b, 48, 0); }
static void c_name(id o, SEL s, const void *v, u64 type, id name) { char key[256]; unsigned char b[48] = {0}; (void)s; memcpy(b, v, size_of_type(type)); snprintf(key, sizeof key, "constant %s", text(name)); put(o, S(key), b, 48, 0); }

/* pipelines: x = function, p = code */
static id pipeline(id device, id f, id descriptor, id *error)
{
    if (!f) { if (error) *error = error_make("MTLComputePipelineErrorDomain", 3, "no function"); offence("pipeline from a nil function"); return 0; }
    if (get_int(f, "functionType") != 3) { if (error) *error = error_make("AGXMetal", 2, "only a kernel makes a compute pipeline"); return 0; }
    char name[256];
    snprintf(name, sizeof name, "fakemsl_run_%s", text(get_object(f, "name")));
    id o = make(objc_getClass("AGXComputePipelineState"));
    put_object(o, "device", device);
    if (descriptor) put_object(o, "label", get_object(descriptor, "label"));
    o->x = objc_retain(f);
    o->p = f->x->p ? dlsym(f->x->p, name) : 0;
    snprintf(name, sizeof name, "fakemsl_info_%s", text(get_object(f, "name")));
    u64 *info = f->x->p ? dlsym(f->x->p, name) : 0;
    u64 most = info && info[0] ? info[0] : 1024, asked = descriptor ? get_int(descriptor, "maxTotalThreadsPerThreadgroup") : 0;
    put_int(o, "maxTotalThreadsPerThreadgroup", asked ? asked : most), put_int(o, "threadExecutionWidth", 32);
    put_int(o, "staticThreadgroupMemoryLength", info ? info[1] : 0);
    return o;
}
static id p_function(id o, SEL s, id f, id *error) { (void)s; return pipeline(o, f, 0, error); }
static id p_reflect(id o, SEL s, id f, u64 options, id *reflection, id *error)
{
    (void)s, (void)options;
    if (reflection) *reflection = objc_autorelease(make(objc_getClass("MTLComputePipelineReflection")));
    return pipeline(o, f, 0, error);
}
static id p_descriptor(id o, SEL s, id d, u64 options, id *reflection, id *error)
{
    (void)s, (void)options;
    if (reflection) *reflection = 0;
    return pipeline(o, get_object(d, "computeFunction"), d, error);
}
static void p_async(id o, SEL s, id f, Block *b)
{
    id error = 0, p = pipeline(o, f, 0, &error);
    (void)s;
    ((void (*)(void *, id, id))b->invoke)(b, p, error);
    objc_release(p);
}

/* queues (p = Work) and command buffers (p = Commands, a = status, x = queue, t = times) */
static void run(id cb);
static void *worker(void *raw)
{
    Work *w = raw;
    pthread_mutex_lock(&w->m);
    for (;;) {
        while (!w->n && !w->closed) pthread_cond_wait(&w->c, &w->m);
        if (!w->n) break;
        id cb = w->items[0];
        memmove(w->items, w->items + 1, --w->n * sizeof *w->items);
        pthread_mutex_unlock(&w->m);
        void *token = objc_autoreleasePoolPush();
        run(cb);
        objc_autoreleasePoolPop(token);
        objc_release(cb);
        pthread_mutex_lock(&w->m);
    }
    pthread_mutex_unlock(&w->m);
    free(w->items), free(w), free(pool.items);
    return 0;
}
static id q_new(id o, SEL s) { id q = new_child(o, class_for(method_now(o, s)->result), 0); Work *w = calloc(1, sizeof *w); pthread_mutex_init(&w->m, 0); pthread_cond_init(&w->c, 0); q->p = w; return q; }
static void q_free(id o)
{
    Work *w = o->p;
    if (!w) return;
    pthread_mutex_lock(&w->m);
    w->closed = 1;
    int started = w->started;
    pthread_cond_signal(&w->c);
    pthread_mutex_unlock(&w->m);
    if (!started) free(w->items), free(w);
}
static id cb_new(id o, SEL s)        /* a queue: a = command buffers made and not done, b = those committed */
{
    pthread_mutex_lock(&fin);
    while (o->a >= 64 && o->b) pthread_cond_wait(&fin_c, &fin);
    int stuck = o->a >= 64;
    o->a++;
    pthread_mutex_unlock(&fin);
    if (stuck) offence("commandBuffer would wait for ever: this queue has 64, and none is committed");
    id c = make(class_for(method_now(o, s)->result));
    Commands *k = calloc(1, sizeof *k);
    k->last = &k->first;
    c->p = k, c->x = objc_retain(o);
    put_object(c, "device", get_object(o, "device")), put_object(c, "commandQueue", o);
    return objc_autorelease(c);
}
static void binding_free(Bindings *b, int bytes)
{
    objc_release(b->pipeline);
    for (int i = 0; i < 31; i++) { objc_release(b->buffers[i]); if (bytes) free(b->bytes[i]); }
}
static void cb_clear(id o)
{
    Commands *k = o->p;
    for (Cmd *c = k->first; c;) { Cmd *n = c->next; binding_free(&c->b, 1); objc_release(c->one), objc_release(c->two); free(c); c = n; }
    k->first = 0, k->last = &k->first;
}
static void cb_gone(id o, u64 committed) { pthread_mutex_lock(&fin); o->x->a--, o->x->b -= committed; pthread_cond_broadcast(&fin_c); pthread_mutex_unlock(&fin); }
static void cb_free(id o)
{
    Commands *k = o->p;
    if (!k) return;
    cb_clear(o);
    for (int i = 0; i < k->ndone; i++) _Block_release(k->done[i]);
    for (int i = 0; i < k->nscheduled; i++) _Block_release(k->scheduled[i]);
    if (o->a < 2) cb_gone(o, 0);
    free(k), objc_release(o->x);
}
static Cmd *cmd(id cb, int kind)
{
    Commands *k = cb->p;
    if (cb->a >= 2) offence("encoding into a committed command buffer");
    Cmd *c = calloc(1, sizeof *c);
    c->kind = kind;
    *k->last = c, k->last = &c->next;
    return c;
}
static void cb_done(id o, SEL s, Block *b) { Commands *k = o->p; (void)s; if (o->a >= 2) offence("addCompletedHandler: after commit"); if (k->ndone < 64) k->done[k->ndone++] = _Block_copy(b); }
static void cb_scheduled(id o, SEL s, Block *b) { Commands *k = o->p; (void)s; if (k->nscheduled < 64) k->scheduled[k->nscheduled++] = _Block_copy(b); }
static void cb_enqueue(id o, SEL s) { (void)s; if (!o->a) o->a = 1; }
static void cb_commit(id o, SEL s)
{
    (void)s;
    if (o->a >= 2) { offence("command buffer committed twice"); return; }
    if (o->b) offence("commit with an encoder still open");
    o->a = 2;
    Work *w = o->x->p;
    objc_retain(o);
    __atomic_add_fetch(&o->x->b, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&w->m);
    if (w->n == w->cap) w->items = realloc(w->items, (w->cap = w->cap ? 2 * w->cap : 16) * sizeof *w->items);
    w->items[w->n++] = o;
    if (!w->started) { pthread_t t; w->started = 1; pthread_create(&t, 0, worker, w); pthread_detach(t); }
    pthread_cond_signal(&w->c);
    pthread_mutex_unlock(&w->m);
}
static void wait_for(id o, u64 status)
{
    if (o->a < 2) { offence("wait on a command buffer that was not committed"); return; }
    pthread_mutex_lock(&fin);
    while (o->a < status) pthread_cond_wait(&fin_c, &fin);
    pthread_mutex_unlock(&fin);
}
static void cb_wait(id o, SEL s) { (void)s; wait_for(o, 4); }
static void cb_wait_scheduled(id o, SEL s) { (void)s; wait_for(o, 3); }
static u64 cb_status(id o, SEL s) { (void)s; return __atomic_load_n(&o->a, __ATOMIC_SEQ_CST); }
static double cb_t0(id o, SEL s) { (void)s; return o->t[0]; }
static double cb_t1(id o, SEL s) { (void)s; return o->t[1]; }
static double cb_t2(id o, SEL s) { (void)s; return o->t[2]; }
static double cb_t3(id o, SEL s) { (void)s; return o->t[3]; }
static void set_status(id o, u64 v) { pthread_mutex_lock(&fin); o->a = v; pthread_cond_broadcast(&fin_c); pthread_mutex_unlock(&fin); }
static void event_set(id e, u64 v) { pthread_mutex_lock(&fin); if (v > e->a) e->a = v; pthread_cond_broadcast(&fin_c); pthread_mutex_unlock(&fin); }
static int event_wait(id e, u64 v, u64 ms)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += ms / 1000, t.tv_nsec += ms % 1000 * 1000000;
    if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
    pthread_mutex_lock(&fin);
    int late = 0;
    while (e->a < v && !late) late = pthread_cond_timedwait(&fin_c, &fin, &t) != 0;
    int ok = e->a >= v;
    pthread_mutex_unlock(&fin);
    return ok;
}
static void launch(Cmd *c)
{
    static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;   /* kernels keep threadgroup memory and constants in statics */
    Launch l;
    memset(&l, 0, sizeof l);
    for (int i = 0; i < 3; i++) {
        l.group[i] = c->group[i];
        l.grid[i] = c->by_threads ? c->grid[i] : c->grid[i] * c->group[i];
        l.groups[i] = (l.grid[i] + l.group[i] - 1) / l.group[i];
    }
    for (int i = 0; i < 31; i++) {
        l.buffers[i] = c->b.bytes[i] ? c->b.bytes[i] : c->b.buffers[i] ? (char *)c->b.buffers[i]->p + c->b.offsets[i] : 0;
        l.memory[i] = c->b.memory[i];
    }
    id values = c->b.pipeline->x->y;
    for (Prop *p = values ? values->props : 0; p; p = p->next) {
        const char *key = p->key;
        if (!strncmp(key, "constant ", 9) && key[9] >= '0' && key[9] <= '9' && atoi(key + 9) < 64) l.constants[atoi(key + 9)] = p->v.raw;
    }
    pthread_mutex_lock(&m);
    ((void (*)(Launch *))c->b.pipeline->p)(&l);
    pthread_mutex_unlock(&m);
}
static void sample(id set, u64 i)
{
    u64 *data = set->p;
    if (i < set->a) data[i] = counter_mode == 1 ? 0 : counter_mode == 2 ? ~0ULL : nanoseconds();
}
static void run(id o)
{
    Commands *k = o->p;
    const char *why = 0;
    o->t[0] = seconds(), o->t[1] = seconds();
    for (int i = 0; i < k->nscheduled; i++) k->scheduled[i]->invoke(k->scheduled[i], o);
    set_status(o, 3);
    o->t[2] = seconds();
    int fail = fail_next > 0 && __atomic_fetch_sub(&fail_next, 1, __ATOMIC_SEQ_CST) > 0;
    for (Cmd *c = fail ? 0 : k->first; c; c = c->next) switch (c->kind) {
    case DISPATCH: if (c->b.pipeline->p) launch(c); else why = "no C++ compiler here: the kernel did not run"; break;
    case COPY: memmove((char *)c->two->p + c->to, (char *)c->one->p + c->from, c->n); break;
    case FILL: memset((char *)c->one->p + c->from, (int)c->to, c->n); break;
    case SIGNAL: event_set(c->one, c->n); break;
    case WAIT: if (!event_wait(c->one, c->n, 20000)) why = "timed out waiting for an event"; break;
    case SAMPLE: sample(c->one, c->n); break;
    case CALL: c->call(c); break;
    }
    if (fail) why = "Caused GPU Timeout Error (as asked)";
    o->t[3] = seconds();
    if (why) put_object(o, "error", error_make("MTLCommandBufferErrorDomain", fail ? 2 : 1, why));
    cb_clear(o);
    int ndone = k->ndone, nscheduled = k->nscheduled;
    for (int i = 0; i < ndone; i++) k->done[i]->invoke(k->done[i], o);
    k->ndone = k->nscheduled = 0;       /* a handler that ran is let go: what it captured may be this command buffer */
    for (int i = 0; i < ndone; i++) _Block_release(k->done[i]);
    for (int i = 0; i < nscheduled; i++) _Block_release(k->scheduled[i]);
    set_status(o, why ? 5 : 4);
    cb_gone(o, 1);
}

/* encoders: x = command buffer, p = Bindings, a = ended, b = commands, y = pass descriptor */
static id encoder(id cb, SEL s, id pass)
{
    if (cb->b) offence("a second encoder while one is open");
    id e = make(class_for(method_now(cb, s)->result));
    e->x = objc_retain(cb), e->p = calloc(1, sizeof(Bindings)), e->y = pass ? objc_retain(pass) : 0;
    put_object(e, "device", get_object(cb, "device"));
    cb->b++;
    return objc_autorelease(e);
}
static id e_plain(id o, SEL s) { return encoder(o, s, 0); }
static id e_pass(id o, SEL s, id pass) { return encoder(o, s, pass); }
static id e_type(id o, SEL s, u64 type) { (void)type; return encoder(o, s, 0); }
static void sampler(id e, int end)
{
    if (!e->y) return;
    id list = get_object(e->y, "sampleBufferAttachments"), a = list ? get_object(list, "#0") : 0, set = a ? get_object(a, "sampleBuffer") : 0;
    u64 i = a ? get_int(a, end ? "endOfEncoderSampleIndex" : "startOfEncoderSampleIndex") : 0;
    if (!set || i == ~0ULL) return;
    Cmd *c = cmd(e->x, SAMPLE);
    c->one = objc_retain(set), c->n = i;
}
static Cmd *work(id e, int kind)
{
    if (e->a) offence("encoding after endEncoding");
    if (!e->b++) sampler(e, 0);
    return cmd(e->x, kind);
}
static void e_end(id e, SEL s)
{
    (void)s;
    if (e->a++) { offence("endEncoding twice"); return; }
    if (e->b) sampler(e, 1);
    e->x->b--;
}
static void e_free(id e)
{
    if (!e->a) { offence("%s let go without endEncoding", e->isa->name); e->x->b--; }
    binding_free(e->p, 1);
    free(e->p), objc_release(e->y), objc_release(e->x);
}
static Bindings *slot(id e, u64 i) { if (i > 30) { offence("argument index %lu exceeds 30", (unsigned long)i); return 0; } if (e->a) offence("encoding after endEncoding"); return e->p; }
static void c_pipeline(id e, SEL s, id p) { Bindings *b = e->p; (void)s; objc_retain(p), objc_release(b->pipeline), b->pipeline = p; }
static void c_buffer(id e, SEL s, id buffer, u64 offset, u64 i)
{
    Bindings *b = slot(e, i);
    (void)s;
    if (!b) return;
    if (buffer && offset >= buffer->a) offence("setBuffer: offset %lu of %lu", (unsigned long)offset, (unsigned long)buffer->a);
    objc_retain(buffer), objc_release(b->buffers[i]);
    b->buffers[i] = buffer, b->offsets[i] = offset;
    free(b->bytes[i]), b->bytes[i] = 0;
}
static void c_offset(id e, SEL s, u64 offset, u64 i) { Bindings *b = slot(e, i); (void)s; if (b) b->offsets[i] = offset; }
static void c_bytes(id e, SEL s, const void *from, u64 n, u64 i)
{
    Bindings *b = slot(e, i);
    (void)s;
    if (n > 4096) { offence("setBytes: length %lu exceeds 4096", (unsigned long)n); return; }
    if (!b) return;
    free(b->bytes[i]);
    b->bytes[i] = calloc(1, n + 16), memcpy(b->bytes[i], from, n);
}
static void c_memory(id e, SEL s, u64 n, u64 i) { Bindings *b = slot(e, i); (void)s; if (n & 15) offence("threadgroup memory of %lu bytes is no multiple of 16", (unsigned long)n); if (b) b->memory[i] = n; }
static void dispatch(id e, T_QQQ grid, T_QQQ group, int by_threads)
{
    Bindings *b = e->p;
    if (!b->pipeline) { offence("dispatch without a pipeline"); return; }
    u64 n = group.v[0] * group.v[1] * group.v[2], memory = get_int(b->pipeline, "staticThreadgroupMemoryLength");
    for (int i = 0; i < 31; i++) memory += b->memory[i];
    if (!n || !grid.v[0] || !grid.v[1] || !grid.v[2]) { offence("dispatch of size 0"); return; }
    if (n > get_int(b->pipeline, "maxTotalThreadsPerThreadgroup")) { offence("threadgroup of %lu threads is too large", (unsigned long)n); return; }
    if (memory > get_int(the_device, "maxThreadgroupMemoryLength")) { offence("%lu bytes of threadgroup memory are too much", (unsigned long)memory); return; }
    Cmd *c = work(e, DISPATCH);
    c->b = *b, c->by_threads = by_threads;
    objc_retain(b->pipeline);
    for (int i = 0; i < 31; i++) {
        objc_retain(b->buffers[i]);
        if (b->bytes[i]) { c->b.bytes[i] = malloc(4112); memcpy(c->b.bytes[i], b->bytes[i], 16); }
    }
    for (int i = 0; i < 31; i++) if (b->bytes[i]) { extern size_t malloc_usable_size(void *); size_t have = malloc_usable_size(b->bytes[i]); memcpy(c->b.bytes[i], b->bytes[i], have < 4112 ? have : 4112); }
    memcpy(c->grid, grid.v, 24), memcpy(c->group, group.v, 24);
}
static void c_threads(id e, SEL s, T_QQQ grid, T_QQQ group) { (void)s; dispatch(e, grid, group, 1); }
static void c_groups(id e, SEL s, T_QQQ grid, T_QQQ group) { (void)s; dispatch(e, grid, group, 0); }
static void c_indirect(id e, SEL s, id buffer, u64 offset, T_QQQ group) { uint32_t *n = (uint32_t *)((char *)buffer->p + offset); (void)s; dispatch(e, (T_QQQ){{n[0], n[1], n[2]}}, group, 0); }
static int inside(id b, u64 offset, u64 n, const char *what) { if (offset + n < n || offset + n > b->a) { offence("%s: %lu bytes at %lu of %lu", what, (unsigned long)n, (unsigned long)offset, (unsigned long)b->a); return 0; } return 1; }
static void bl_copy(id e, SEL s, id from, u64 at, id to, u64 there, u64 n)
{
    (void)s;
    if (!inside(from, at, n, "copy from") || !inside(to, there, n, "copy to")) return;
    Cmd *c = work(e, COPY);
    c->one = objc_retain(from), c->two = objc_retain(to), c->from = at, c->to = there, c->n = n;
}
static void bl_fill(id e, SEL s, id b, T_QQ range, unsigned char v)
{
    (void)s;
    if (!inside(b, range.v[0], range.v[1], "fill")) return;
    Cmd *c = work(e, FILL);
    c->one = objc_retain(b), c->from = range.v[0], c->n = range.v[1], c->to = v;
}
static void bl_nothing(id e, SEL s) { (void)s; e->b += !e->b; }
static void cb_signal(id o, SEL s, id event, u64 v) { Cmd *c = cmd(o, SIGNAL); (void)s; if (o->b) offence("encodeSignalEvent: while an encoder is open"); c->one = objc_retain(event), c->n = v; }
static void cb_wait_event(id o, SEL s, id event, u64 v) { Cmd *c = cmd(o, WAIT); (void)s; if (o->b) offence("encodeWaitForEvent: while an encoder is open"); c->one = objc_retain(event), c->n = v; }

/* events, counters, argument encoders, residency sets */
static u64 ev_get(id o, SEL s) { (void)s; return o->a; }
static void ev_set(id o, SEL s, u64 v) { (void)s; event_set(o, v); }
static char ev_wait(id o, SEL s, u64 v, u64 ms) { (void)s; return event_wait(o, v, ms); }
static void *notify(void *raw)
{
    void **a = raw;
    id e = a[0];
    Block *b = a[2];
    event_wait(e, (u64)a[1], 20000);
    ((void (*)(void *, id, u64))b->invoke)(b, e, e->a);
    _Block_release(b), objc_release(e), free(a);
    return 0;
}
static void ev_notify(id o, SEL s, id listener, u64 v, Block *b)
{
    pthread_t t;
    (void)s, (void)listener;
    void **a = malloc(3 * sizeof *a);
    a[0] = objc_retain(o), a[1] = (void *)v, a[2] = _Block_copy(b);
    pthread_create(&t, 0, notify, a), pthread_detach(t);
}
static id late_event;
static void late(void) { event_set(late_event, ~0ULL); usleep(300000); }
void fake_late(id event) { late_event = objc_retain(event); atexit(late); }     /* a driver that calls back when Python is gone */
static id counter_set;
static id ct_sets(id o, SEL s) { (void)o, (void)s; return counter_mode == 3 ? 0 : objc_autorelease(array_n(&counter_set, 1)); }
static char ct_point(id o, SEL s, u64 p) { (void)o, (void)s; return p == 0 && counter_mode != 3; }
static u64 samplers;
static id ct_new(id o, SEL s, id d, id *error)
{
    u64 n = get_int(d, "sampleCount");
    if (n < 1 || n * 8 > 32768 || samplers >= 32) { if (error) *error = error_make("MTLCounterErrorDomain", 1, "cannot allocate sample buffer"); return 0; }
    __atomic_add_fetch(&samplers, 1, __ATOMIC_RELAXED);
    id c = new_child(o, class_for(method_now(o, s)->result), d);
    c->p = calloc(n, 8), c->a = n;
    return c;
}
static void ct_free(id o) { if (!o->p) return; free(o->p); __atomic_sub_fetch(&samplers, 1, __ATOMIC_RELAXED); }
static id ct_resolve(id o, SEL s, T_QQ r) { (void)s; if (r.v[0] + r.v[1] > o->a) { offence("resolveCounterRange: outside"); return 0; } return objc_autorelease(data_n((u64 *)o->p + r.v[0], 8 * r.v[1])); }
static id ae_function(id o, SEL s, u64 i) { id a = new_child(o, class_for(method_now(o, s)->result), 0); (void)i; put_int(a, "encodedLength", 256), put_int(a, "alignment", 16); return a; }
static id ae_device(id o, SEL s, id list) { id a = new_child(o, class_for(method_now(o, s)->result), 0); put_int(a, "encodedLength", 8 * (list ? list->a : 0)), put_int(a, "alignment", 16); return a; }
static void ae_buffer(id o, SEL s, id b, u64 offset) { (void)s; objc_retain(b), objc_release(o->x), o->x = b, o->a = offset; }
static void ae_set(id o, SEL s, id b, u64 offset, u64 i)
{
    (void)s;
    if (!o->x) { offence("argument encoder without a buffer"); return; }
    u64 v = b ? (u64)b->p + offset : 0;     /* the CPU's kernels follow real pointers */
    if (inside(o->x, o->a + 8 * i, 8, "argument")) memcpy((char *)o->x->p + o->a + 8 * i, &v, 8);
}
static void *ae_constant(id o, SEL s, u64 i) { (void)s; return o->x ? (char *)o->x->p + o->a + 8 * i : 0; }
static void ae_free(id o) { objc_release(o->x); }
static id rs_new(id o, SEL s, id d, id *error) { (void)error; return new_child(o, class_for(method_now(o, s)->result), d); }
static void rs_add(id o, SEL s, id a) { char key[32]; (void)s; snprintf(key, sizeof key, "#%p", (void *)a); put_object(o, key, a); }
static void rs_adds(id o, SEL s, id const *a, u64 n) { for (u64 i = 0; i < n; i++) rs_add(o, s, a[i]); }
static u64 rs_count(id o, SEL s) { u64 n = 0; (void)s; for (Prop *p = o->props; p; p = p->next) n += ((const char *)p->key)[0] == '#' && p->v.o; return n; }
static u64 rs_size(id o, SEL s) { u64 n = 0; (void)s; for (Prop *p = o->props; p; p = p->next) if (((const char *)p->key)[0] == '#' && p->v.o) n += p->v.o->a; return n; }
static char rs_has(id o, SEL s, id a) { char key[32]; (void)s; snprintf(key, sizeof key, "#%p", (void *)a); return get_object(o, key) != 0; }
static void rs_remove(id o, SEL s, id a) { char key[32]; (void)s; snprintf(key, sizeof key, "#%p", (void *)a); put_object(o, key, 0); }
static id icb_new(id o, SEL s, id d, u64 n, u64 options) { id i = new_child(o, class_for(method_now(o, s)->result), d); (void)options; put_int(i, "size", n); return i; }
static id no_archive(id o, SEL s, id url, id *error) { (void)o, (void)s, (void)url, (void)error; return 0; }
static id tx_2d(id c, SEL s, u64 format, u64 w, u64 h, char mip)
{
    id o = objc_autorelease(make((Cls *)c));
    (void)s, (void)mip;
    put_int(o, "pixelFormat", format), put_int(o, "width", w), put_int(o, "height", h), put_int(o, "depth", 1), put_int(o, "textureType", 2);
    put_int(o, "mipmapLevelCount", 1), put_int(o, "sampleCount", 1), put_int(o, "arrayLength", 1), put_int(o, "usage", 1);
    return o;
}
static id manager;
static id cm_shared(id o, SEL s) { (void)o, (void)s; return manager; }

#define METAL_NATIVES \
    {"MTLDevice", "-supportsFamily:", v_family}, {"MTLDevice", "-maxThreadsPerThreadgroup", v_threads}, {"MTLDevice", "-currentAllocatedSize", v_allocated}, \
    {"MTLDevice", "-sampleTimestamps:gpuTimestamp:", v_timestamps}, {"MTLDevice", "-newBufferWithLength:options:", b_length}, {"MTLDevice", "-newBufferWithBytes:length:options:", b_bytes}, \
    {"MTLDevice", "-newBufferWithBytesNoCopy:length:options:deallocator:", b_nocopy}, {"MTLBuffer", "-length", b_get_length}, {"MTLBuffer", "-contents", b_contents}, \
    {"MTLBuffer", "-gpuAddress", b_address}, {"MTLResource", "-allocatedSize", b_allocated}, {"MTLHeap", "-newBufferWithLength:options:", h_length}, {"MTLHeap", "-usedSize", h_used}, \
    {"MTLHeap", "-maxAvailableSizeWithAlignment:", h_available}, {"MTLDevice", "-newLibraryWithSource:options:error:", l_source}, {"MTLDevice", "-newLibraryWithURL:error:", l_url}, \
    {"MTLDevice", "-newLibraryWithSource:options:completionHandler:", l_async}, {"MTLLibrary", "-functionNames", l_names}, {"MTLLibrary", "-newFunctionWithName:", f_name}, \
    {"MTLLibrary", "-newFunctionWithName:constantValues:error:", f_constants}, {"MTLFunctionConstantValues", "-setConstantValue:type:atIndex:", c_index}, \
    {"MTLFunctionConstantValues", "-setConstantValue:type:withName:", c_name}, {"MTLDevice", "-newComputePipelineStateWithFunction:error:", p_function}, \
    {"MTLDevice", "-newComputePipelineStateWithFunction:options:reflection:error:", p_reflect}, {"MTLDevice", "-newComputePipelineStateWithDescriptor:options:reflection:error:", p_descriptor}, \
    {"MTLDevice", "-newComputePipelineStateWithFunction:completionHandler:", p_async}, {"MTLDevice", "-newCommandQueue", q_new}, {"MTLDevice", "-newCommandQueueWithMaxCommandBufferCount:", q_new}, \
    {"MTLCommandQueue", "-commandBuffer", cb_new}, {"MTLCommandQueue", "-commandBufferWithUnretainedReferences", cb_new}, {"MTLCommandQueue", "-commandBufferWithDescriptor:", cb_new}, \
    {"MTLCommandBuffer", "-addCompletedHandler:", cb_done}, {"MTLCommandBuffer", "-addScheduledHandler:", cb_scheduled}, {"MTLCommandBuffer", "-enqueue", cb_enqueue}, {"MTLCommandBuffer", "-commit", cb_commit}, \
    {"MTLCommandBuffer", "-waitUntilCompleted", cb_wait}, {"MTLCommandBuffer", "-waitUntilScheduled", cb_wait_scheduled}, {"MTLCommandBuffer", "-status", cb_status}, \
    {"MTLCommandBuffer", "-kernelStartTime", cb_t0}, {"MTLCommandBuffer", "-kernelEndTime", cb_t1}, {"MTLCommandBuffer", "-GPUStartTime", cb_t2}, {"MTLCommandBuffer", "-GPUEndTime", cb_t3}, \
    {"MTLCommandBuffer", "-computeCommandEncoder", e_plain}, {"MTLCommandBuffer", "-computeCommandEncoderWithDescriptor:", e_pass}, {"MTLCommandBuffer", "-computeCommandEncoderWithDispatchType:", e_type}, \
    {"MTLCommandBuffer", "-blitCommandEncoder", e_plain}, {"MTLCommandBuffer", "-blitCommandEncoderWithDescriptor:", e_pass}, {"MTLCommandBuffer", "-renderCommandEncoderWithDescriptor:", e_pass}, \
    {"MTLCommandBuffer", "-encodeSignalEvent:value:", cb_signal}, {"MTLCommandBuffer", "-encodeWaitForEvent:value:", cb_wait_event}, {"MTLCommandEncoder", "-endEncoding", e_end}, \
    {"MTLComputeCommandEncoder", "-setComputePipelineState:", c_pipeline}, {"MTLComputeCommandEncoder", "-setBuffer:offset:atIndex:", c_buffer}, {"MTLComputeCommandEncoder", "-setBufferOffset:atIndex:", c_offset}, \
    {"MTLComputeCommandEncoder", "-setBytes:length:atIndex:", c_bytes}, {"MTLComputeCommandEncoder", "-setThreadgroupMemoryLength:atIndex:", c_memory}, \
    {"MTLComputeCommandEncoder", "-dispatchThreads:threadsPerThreadgroup:", c_threads}, {"MTLComputeCommandEncoder", "-dispatchThreadgroups:threadsPerThreadgroup:", c_groups}, \
    {"MTLComputeCommandEncoder", "-dispatchThreadgroupsWithIndirectBuffer:indirectBufferOffset:threadsPerThreadgroup:", c_indirect}, \
    {"MTLBlitCommandEncoder", "-copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:", bl_copy}, {"MTLBlitCommandEncoder", "-fillBuffer:range:value:", bl_fill}, \
    {"MTLSharedEvent", "-signaledValue", ev_get}, {"MTLSharedEvent", "-setSignaledValue:", ev_set}, {"MTLSharedEvent", "-waitUntilSignaledValue:timeoutMS:", ev_wait}, {"MTLSharedEvent", "-notifyListener:atValue:block:", ev_notify}, \
    {"MTLDevice", "-counterSets", ct_sets}, {"MTLDevice", "-supportsCounterSampling:", ct_point}, {"MTLDevice", "-newCounterSampleBufferWithDescriptor:error:", ct_new}, {"MTLCounterSampleBuffer", "-resolveCounterRange:", ct_resolve}, \
    {"MTLFunction", "-newArgumentEncoderWithBufferIndex:", ae_function}, {"MTLDevice", "-newArgumentEncoderWithArguments:", ae_device}, {"MTLArgumentEncoder", "-setArgumentBuffer:offset:", ae_buffer}, \
    {"MTLArgumentEncoder", "-setBuffer:offset:atIndex:", ae_set}, {"MTLArgumentEncoder", "-constantDataAtIndex:", ae_constant}, \
    {"MTLDevice", "-newResidencySetWithDescriptor:error:", rs_new}, {"MTLResidencySet", "-addAllocation:", rs_add}, {"MTLResidencySet", "-addAllocations:count:", rs_adds}, {"MTLResidencySet", "-allocationCount", rs_count}, \
    {"MTLResidencySet", "-allocatedSize", rs_size}, {"MTLResidencySet", "-containsAllocation:", rs_has}, {"MTLResidencySet", "-removeAllocation:", rs_remove}, \
    {"MTLDevice", "-newIndirectCommandBufferWithDescriptor:maxCommandCount:options:", icb_new}, {"MTLTextureDescriptor", "+texture2DDescriptorWithPixelFormat:width:height:mipmapped:", tx_2d}, \
    {"MTLBinaryArchive", "-serializeToURL:error:", no_archive}, {"MTLCaptureManager", "+sharedCaptureManager", cm_shared}, {"MTLBlitCommandEncoder", "-synchronizeResource:", bl_nothing},

static void *metal_dealloc(const char *what)
{
    static const struct { const char *n; void *f; } table[] = { {"buffer", b_free}, {"library", l_free}, {"function", f_free}, {"pipeline", ae_free}, {"queue", q_free},
        {"commands", cb_free}, {"encoder", e_free}, {"counters", ct_free}, {"arguments", ae_free}, {0, 0} };
    for (int i = 0; table[i].n; i++) if (!strcmp(table[i].n, what)) return table[i].f;
    return 0;
}
static void metal_ready(void)
{
    static const int all[] = {1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 2002, 3001, 3002, 3003, 5001};
    the_device = make(objc_getClass("AGXDevice"));
    HEAD(the_device)->count = 1;
    fake_device("Fake M4", 4294968440ULL, 11453251584ULL, 8589934592ULL, 32768, "applegpu_g16g", all, 14);
    MTLCommonCounterSetTimestamp = string_n("timestamp", 9), MTLCommonCounterTimestamp = string_n("GPUTimestamp", 12);
    manager = make(objc_getClass("MTLCaptureManager"));
    counter_set = make(objc_getClass("AGXCounterSet"));
    put_object(counter_set, "name", MTLCommonCounterSetTimestamp);
}
