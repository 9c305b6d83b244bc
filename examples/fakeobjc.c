/* A small Objective-C runtime with stand-ins for Foundation and Metal, so that code which talks to them through the C ABI
 * runs on Linux. fakeobjc.py compiles it, feeds it the method tables of metal_api.json and serves the kernels.
 *
 * What it is strict about, because a Mac would be: each object's count (a release too many, a message to a dead object, an
 * object left behind with the selector that made it), pools (nesting, thread), selectors nobody implements, a struct result
 * from nil, and the checks Metal's validation layer aborts on. Every offence is one line in the log and one in `errors`.
 *
 * Buffers are real memory, fills and copies happen, compute kernels run on the CPU (code compiled by fakeobjc.py). A queue
 * has one thread; handlers are called from it, as on a Mac. Draws are only counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;
typedef const char *SEL;
typedef struct Cls Cls;
typedef struct Obj Obj;
typedef Obj *id;
typedef u64 (*IMP)(id, SEL);
typedef struct { SEL sel; IMP imp; char *types, *extended; const char *result; int own; } Method;
typedef struct Protocol { Cls *isa; char *name; struct Protocol *parents[8]; int nparents; Method *methods; int n; char *flags; } Protocol;
struct Cls { Cls *isa, *super; char *name; int meta, records; void (*dealloc)(id); Method *methods; int n, cap;
             Protocol *protocols[8]; int nprotocols; };
typedef struct Prop { struct Prop *next; const void *key; int object; union { u64 u; double d; id o; unsigned char raw[48]; } v; } Prop;
typedef struct { u64 launches, head; } Counts;
struct Obj {                        /* every object has the same shape: this is a model, not a runtime to be fast with */
    Cls *isa;
    Prop *props;
    void *p, *q; u64 a, b, c; double t[4]; id x, y, z;
};
typedef struct Head { struct Head *prev, *next; int64_t count; int dead; SEL creator; u64 serial; } Head;
#define HEAD(o) ((Head *)(o) - 1)
#define TAGGED(o) ((u64)(o) >> 63)

static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;      /* lists, properties, method look-up */
static Head live = { &live, &live, 0, 0, 0, 0 };
static u64 made, sends, errors, nopool, serials, lives, pools_open;
static char logtext[1 << 16];
static size_t loglen;
static __thread SEL current_sel;

static void lock(void) { pthread_mutex_lock(&big); }
static void unlock(void) { pthread_mutex_unlock(&big); }
static void offence(const char *f, ...)
{
    char line[512];
    va_list l;
    va_start(l, f);
    int n = vsnprintf(line, sizeof line - 1, f, l);
    va_end(l);
    if (n > (int)sizeof line - 2) n = sizeof line - 2;
    line[n++] = '\n';
    __atomic_add_fetch(&errors, 1, __ATOMIC_RELAXED);
    static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&m);
    if (loglen + n < sizeof logtext) { memcpy(logtext + loglen, line, n); loglen += n; logtext[loglen] = 0; }
    pthread_mutex_unlock(&m);
    if (getenv("FAKEOBJC_VERBOSE")) fputs(line, stderr);
}

/* ---- selectors, classes ---- */
typedef struct Sel { struct Sel *next; u64 count; char name[]; } Sel;
static Sel *selectors[4096];
static unsigned hash(const char *s) { unsigned h = 5381; while (*s) h = h * 33 ^ (unsigned char)*s++; return h; }
SEL sel_registerName(const char *name)
{
    unsigned h = hash(name) & 4095;
    lock();
    Sel *s = selectors[h];
    while (s && strcmp(s->name, name)) s = s->next;
    if (!s) {
        s = calloc(1, sizeof *s + strlen(name) + 1);
        strcpy(s->name, name);
        s->next = selectors[h];
        selectors[h] = s;
    }
    unlock();
    return s->name;
}
const char *sel_getName(SEL s) { return s; }
#define S(n) sel_registerName(n)

static Cls *classes[1024]; static int nclasses;
static Protocol *protocols[256]; static int nprotocols;
Cls *objc_getClass(const char *name)
{
    for (int i = 0; i < nclasses; i++) if (!strcmp(classes[i]->name, name)) return classes[i];
    return 0;
}
Protocol *objc_getProtocol(const char *name)
{
    for (int i = 0; i < nprotocols; i++) if (!strcmp(protocols[i]->name, name)) return protocols[i];
    return 0;
}
const char *protocol_getName(Protocol *p) { return p->name; }
static Cls *tagged_class;
Cls *object_getClass(id o) { return !o ? 0 : TAGGED(o) ? tagged_class : o->isa; }
const char *class_getName(Cls *c) { return c ? c->name : "nil"; }
Cls *class_getSuperclass(Cls *c) { return c ? c->super : 0; }
char class_isMetaClass(Cls *c) { return c && c->meta; }
static Cls *new_class(const char *name, const char *parent)
{
    Cls *c = calloc(1, sizeof *c), *m = calloc(1, sizeof *m), *up = parent ? objc_getClass(parent) : 0;
    c->name = m->name = strdup(name);
    c->super = up;
    c->isa = m;
    m->meta = 1;
    m->super = up ? up->isa : c;
    Cls *root = objc_getClass("NSObject");
    m->isa = root ? root->isa : m;
    c->dealloc = up ? up->dealloc : 0;
    classes[nclasses++] = c;
    return c;
}
static struct { Cls *c; SEL s; Method *m; } cache[1 << 14];
static Method *find(Cls *c, SEL s)
{
    unsigned h = ((u64)c >> 4 ^ (u64)s >> 3) & ((1 << 14) - 1);
    lock();
    if (cache[h].c == c && cache[h].s == s) { Method *m = cache[h].m; unlock(); return m; }
    Method *found = 0;
    for (Cls *k = c; k && !found; k = k->super)
        for (int i = 0; i < k->n; i++) if (k->methods[i].sel == s) { found = &k->methods[i]; break; }
    cache[h].c = c, cache[h].s = s, cache[h].m = found;
    unlock();
    return found;
}
Method *class_getInstanceMethod(Cls *c, SEL s) { return c ? find(c, s) : 0; }
char *method_getTypeEncoding(Method *m) { return m ? m->types : 0; }
SEL method_getName(Method *m) { return m->sel; }
Method **class_copyMethodList(Cls *c, unsigned *n)
{
    *n = c->n;
    if (!c->n) return 0;
    Method **list = malloc(sizeof *list * (c->n + 1));
    for (int i = 0; i < c->n; i++) list[i] = &c->methods[i];
    return list;
}
Protocol **class_copyProtocolList(Cls *c, unsigned *n)
{
    *n = c->nprotocols;
    if (!*n) return 0;
    Protocol **list = malloc(sizeof *list * (*n + 1));
    memcpy(list, c->protocols, sizeof *list * *n);
    return list;
}
static Method *protocol_method(Protocol *p, SEL s, int required, int instance)
{
    for (int i = 0; i < p->n; i++)
        if (p->methods[i].sel == s && (p->flags[i] & 1) == !required && (p->flags[i] >> 1 & 1) == !instance) return &p->methods[i];
    for (int i = 0; i < p->nparents; i++) {
        Method *m = protocol_method(p->parents[i], s, required, instance);
        if (m) return m;
    }
    return 0;
}
typedef struct { SEL name; char *types; } Description;
Description protocol_getMethodDescription(Protocol *p, SEL s, char required, char instance)
{
    Method *m = protocol_method(p, s, required, instance);
    return (Description){ m ? m->sel : 0, m ? m->types : 0 };
}
const char *_protocol_getMethodTypeEncoding(Protocol *p, SEL s, char required, char instance)
{
    Method *m = protocol_method(p, s, required, instance);
    return m ? m->extended : 0;
}
static int inherits(Cls *c, Cls *k) { while (c && c != k) c = c->super; return c != 0; }
static int adopts(Protocol *p, Protocol *k)
{
    if (p == k) return 1;
    for (int i = 0; i < p->nparents; i++) if (adopts(p->parents[i], k)) return 1;
    return 0;
}

/* ---- counts and pools ---- */
static Cls block_stack, block_malloc, block_global;
__asm__(".globl _NSConcreteStackBlock\n.set _NSConcreteStackBlock, block_stack_storage\n");
Cls block_stack_storage;
typedef struct { u64 reserved, size; void (*copy)(void *, void *), (*dispose)(void *); const char *signature, *layout; } BlockDescriptor;
typedef struct { void *isa; int flags, count; void (*invoke)(void *, ...); BlockDescriptor *descriptor; } Block;
static u64 blocks_live;
void *_Block_copy(Block *b)
{
    if (!b) return 0;
    if (b->flags & 1 << 28) return b;
    if (b->flags & 1 << 24) { __atomic_add_fetch(&b->count, 1, __ATOMIC_SEQ_CST); return b; }
    Block *h = malloc(b->descriptor->size);
    memcpy(h, b, b->descriptor->size);
    h->isa = &block_malloc;
    h->flags |= 1 << 24;
    h->count = 1;
    if (h->flags & 1 << 30 && b->descriptor->layout) offence("a block's descriptor ends before its layout");
    if (h->flags & 1 << 25) b->descriptor->copy(h, b);
    __atomic_add_fetch(&blocks_live, 1, __ATOMIC_SEQ_CST);
    return h;
}
void _Block_release(Block *b)
{
    if (!b || !(b->flags & 1 << 24)) return;
    int left = __atomic_sub_fetch(&b->count, 1, __ATOMIC_SEQ_CST);
    if (left < 0) offence("block released too often");
    if (left) return;
    if (b->flags & 1 << 25) b->descriptor->dispose(b);
    __atomic_sub_fetch(&blocks_live, 1, __ATOMIC_SEQ_CST);
    free(b);
}

#define MAXQUARANTINE 65536
static Head *quarantine[MAXQUARANTINE]; static unsigned quarantine_at, quarantine_size = MAXQUARANTINE;
static int plain(id o) { return o && !TAGGED(o) && !(o->isa && o->isa->meta) && o->isa != &block_malloc; }
static id make(Cls *c)
{
    Head *h = calloc(1, sizeof *h + sizeof(Obj));
    id o = (id)(h + 1);
    o->isa = c;
    h->count = 1;
    h->creator = current_sel;
    lock();
    h->serial = ++serials;
    h->next = live.next, h->prev = &live;
    live.next->prev = h, live.next = h;
    lives++, made++;
    unlock();
    return o;
}
id objc_retain(id o)
{
    if (o && !TAGGED(o) && o->isa == &block_malloc) return _Block_copy((Block *)o);
    if (!plain(o)) return o;
    if (HEAD(o)->dead) { offence("retain of dead %s made by %s", o->isa->name, HEAD(o)->creator); return o; }
    __atomic_add_fetch(&HEAD(o)->count, 1, __ATOMIC_SEQ_CST);
    return o;
}
void objc_release(id o)
{
    if (o && !TAGGED(o) && o->isa == &block_malloc) { _Block_release((Block *)o); return; }
    if (!plain(o)) return;
    Head *h = HEAD(o);
    if (h->dead) { offence("release of dead %s made by %s", o->isa->name, h->creator); return; }
    if (__atomic_sub_fetch(&h->count, 1, __ATOMIC_SEQ_CST)) return;
    if (o->isa->dealloc) o->isa->dealloc(o);
    lock();
    Prop *p = o->props;
    o->props = 0;
    unlock();
    while (p) { Prop *n = p->next; if (p->object) objc_release(p->v.o); free(p); p = n; }
    lock();
    h->dead = 1;
    h->prev->next = h->next, h->next->prev = h->prev;
    lives--;
    Head *old = h;
    if (quarantine_size) { unsigned at = quarantine_at++ % quarantine_size; old = quarantine[at]; quarantine[at] = h; }
    unlock();
    free(old);
}
typedef struct { id *items; size_t n, cap; } Pool;
static __thread Pool pool;
static u64 thread_tag(void) { static __thread u64 t; static u64 next; return t ? t : (t = __atomic_add_fetch(&next, 1, __ATOMIC_SEQ_CST)); }
static void pool_add(id o)
{
    if (pool.n == pool.cap) pool.items = realloc(pool.items, (pool.cap = pool.cap ? 2 * pool.cap : 64) * sizeof *pool.items);
    pool.items[pool.n++] = o;
}
void *objc_autoreleasePoolPush(void)
{
    pool_add(0);
    __atomic_add_fetch(&pools_open, 1, __ATOMIC_RELAXED);
    return (void *)(thread_tag() << 40 | pool.n);
}
void objc_autoreleasePoolPop(void *token)
{
    u64 at = (u64)token & ((1ULL << 40) - 1);
    if ((u64)token >> 40 != thread_tag() || at > pool.n || !at || pool.items[at - 1]) { offence("pool popped that is not open on this thread"); return; }
    while (pool.n >= at) {
        id o = pool.items[--pool.n];
        if (o) objc_release(o); else __atomic_sub_fetch(&pools_open, 1, __ATOMIC_RELAXED);
    }
}
id objc_autorelease(id o)
{
    int open = 0;
    for (size_t i = pool.n; i--;) if (!pool.items[i]) { open = 1; break; }
    if (plain(o) && !open) { __atomic_add_fetch(&nopool, 1, __ATOMIC_RELAXED); return o; }
    if (plain(o)) pool_add(o);
    return o;
}

/* ---- sending ---- */
static u64 forward(id o, SEL s) { (void)o, (void)s; return 0; }     /* marks methods of a debug wrapper */
static u64 nothing(id o, SEL s) { (void)o, (void)s; return 0; }
u64 fake_nil(id o, SEL s);
id objc_msgSend();
static void record(id self, Method *m, id *slot, int stret);
IMP fake_lookup(id self, SEL sel, id *slot, int stret)
{
    __atomic_add_fetch(&sends, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&((Sel *)(sel - __builtin_offsetof(Sel, name)))->count, 1, __ATOMIC_RELAXED);
    if (!self) { if (stret) offence("%s with a struct result sent to nil", sel); return fake_nil; }
    if (plain(self) && HEAD(self)->dead) { offence("%s sent to dead %s made by %s", sel, self->isa->name, HEAD(self)->creator); return fake_nil; }
    Method *m = find(object_getClass(self), sel);
    if (!m) {
        Method *f = find(object_getClass(self), S("forwardingTargetForSelector:"));
        id target = f ? (id)((u64 (*)(id, SEL, SEL))f->imp)(self, f->sel, sel) : 0;
        if (!target && plain(self) && find(object_getClass(self), S("forwardInvocation:")) && self->x) target = self->x;
        if (target && target != self) { *slot = target; return fake_lookup(target, sel, slot, stret); }
        offence("unrecognized selector %c[%s %s]", object_getClass(self)->meta ? '+' : '-', object_getClass(self)->name, sel);
        return fake_nil;
    }
    if (m->imp == (IMP)forward) { *slot = self->x; return fake_lookup(self->x, sel, slot, stret); }
    current_sel = sel;
    if (plain(self) && self->isa->records) record(self, m, slot, stret);
    return m->imp;
}
#if defined(__x86_64__)
#define TRAMPOLINE(name, first, second, slot, flag) __asm__(".text\n.globl " name "\n" name ":\n push %rbp\n mov %rsp, %rbp\n sub $0xD0, %rsp\n" \
    " mov %rdi, 0(%rsp)\n mov %rsi, 8(%rsp)\n mov %rdx, 16(%rsp)\n mov %rcx, 24(%rsp)\n mov %r8, 32(%rsp)\n mov %r9, 40(%rsp)\n mov %rax, 48(%rsp)\n" \
    " movups %xmm0, 64(%rsp)\n movups %xmm1, 80(%rsp)\n movups %xmm2, 96(%rsp)\n movups %xmm3, 112(%rsp)\n movups %xmm4, 128(%rsp)\n" \
    " movups %xmm5, 144(%rsp)\n movups %xmm6, 160(%rsp)\n movups %xmm7, 176(%rsp)\n" \
    " mov " first "(%rsp), %rdi\n mov " second "(%rsp), %rsi\n lea " slot "(%rsp), %rdx\n mov $" flag ", %ecx\n call fake_lookup@PLT\n mov %rax, %r11\n" \
    " movups 64(%rsp), %xmm0\n movups 80(%rsp), %xmm1\n movups 96(%rsp), %xmm2\n movups 112(%rsp), %xmm3\n movups 128(%rsp), %xmm4\n" \
    " movups 144(%rsp), %xmm5\n movups 160(%rsp), %xmm6\n movups 176(%rsp), %xmm7\n" \
    " mov 0(%rsp), %rdi\n mov 8(%rsp), %rsi\n mov 16(%rsp), %rdx\n mov 24(%rsp), %rcx\n mov 32(%rsp), %r8\n mov 40(%rsp), %r9\n mov 48(%rsp), %rax\n" \
    " leave\n jmp *%r11\n");
TRAMPOLINE("objc_msgSend", "0", "8", "0", "0")
TRAMPOLINE("objc_msgSend_stret", "8", "16", "8", "1")
__asm__(".text\n.globl fake_nil\nfake_nil:\n xor %eax, %eax\n xor %edx, %edx\n xorps %xmm0, %xmm0\n xorps %xmm1, %xmm1\n ret\n");
#define BOOLCODE 'c'
#elif defined(__aarch64__)
__asm__(".text\n.globl objc_msgSend\nobjc_msgSend:\n stp x29, x30, [sp, #-16]!\n mov x29, sp\n sub sp, sp, #208\n"
    " stp q0, q1, [sp, #0]\n stp q2, q3, [sp, #32]\n stp q4, q5, [sp, #64]\n stp q6, q7, [sp, #96]\n"
    " stp x0, x1, [sp, #128]\n stp x2, x3, [sp, #144]\n stp x4, x5, [sp, #160]\n stp x6, x7, [sp, #176]\n str x8, [sp, #192]\n"
    " add x2, sp, #128\n mov w3, #0\n bl fake_lookup\n mov x16, x0\n"
    " ldp q0, q1, [sp, #0]\n ldp q2, q3, [sp, #32]\n ldp q4, q5, [sp, #64]\n ldp q6, q7, [sp, #96]\n"
    " ldp x0, x1, [sp, #128]\n ldp x2, x3, [sp, #144]\n ldp x4, x5, [sp, #160]\n ldp x6, x7, [sp, #176]\n ldr x8, [sp, #192]\n"
    " mov sp, x29\n ldp x29, x30, [sp], #16\n br x16\n"
    ".globl fake_nil\nfake_nil:\n mov x0, #0\n mov x1, #0\n movi v0.2d, #0\n movi v1.2d, #0\n movi v2.2d, #0\n movi v3.2d, #0\n ret\n");
#define BOOLCODE 'B'
#else
#error "fakeobjc knows x86-64 and arm64"
#endif
static u64 send0(id o, const char *s) { return (u64)((id (*)(id, SEL))objc_msgSend)(o, S(s)); }

/* ---- properties that any descriptor and state has ---- */
static Prop *prop(id o, const void *key, int create)
{
    Prop *p = o->props;
    while (p && p->key != key) p = p->next;
    if (!p && create) { p = calloc(1, sizeof *p); p->key = key; p->next = o->props; o->props = p; }
    return p;
}
static SEL key_of(SEL s)            /* setLabel: and label, setOpaque: and isOpaque, setURL: and URL share one property */
{
    char name[256];
    size_t n = strlen(s);
    if (!strncmp(s, "set", 3) && s[n - 1] == ':') { memcpy(name, s + 3, n - 4); name[n - 4] = 0; }
    else strcpy(name, s + (!strncmp(s, "is", 2) && s[2] >= 'A' && s[2] <= 'Z' ? 2 : 0));
    name[0] |= 32;
    return S(name);
}
static void put(id o, SEL key, const void *data, size_t n, int object)
{
    id old = 0;
    if (object) objc_retain(*(id *)data);
    lock();
    Prop *p = prop(o, key, 1);
    if (p->object) old = p->v.o;
    memset(p->v.raw, 0, 48);
    memcpy(p->v.raw, data, n);
    p->object = object;
    unlock();
    if (old) objc_release(old);
}
static int get(id o, SEL key, void *data, size_t n)
{
    lock();
    Prop *p = prop(o, key, 0);
    if (p) memcpy(data, p->v.raw, n);
    unlock();
    return p != 0;
}
static void put_int(id o, const char *key, u64 v) { put(o, S(key), &v, 8, 0); }
static void put_object(id o, const char *key, id v) { put(o, S(key), &v, 8, 1); }
static u64 get_int(id o, const char *key) { u64 v = 0; get(o, S(key), &v, 8); return v; }
static id get_object(id o, const char *key) { return (id)get_int(o, key); }
static void copy_props(id from, id to)
{
    if (!plain(from)) return;
    for (Prop *p = from->props; p; p = p->next) put(to, p->key, p->v.raw, 48, p->object);
}
#define STRUCTS(X) X(QQ, u64, 2) X(QQQ, u64, 3) X(QQQQ, u64, 4) X(Q6, u64, 6) X(dd, double, 2) X(dddd, double, 4) X(d6, double, 6) X(ff, float, 2) X(CCCC, unsigned char, 4) X(Q1, u64, 1)
#define X(name, type, n) typedef struct { type v[n]; } T_##name; \
    static T_##name get_##name(id o, SEL s) { T_##name r; memset(&r, 0, sizeof r); get(o, key_of(s), &r, sizeof r); return r; } \
    static void set_##name(id o, SEL s, T_##name r) { put(o, key_of(s), &r, sizeof r, 0); }
STRUCTS(X)
#undef X
static u64 get_u(id o, SEL s) { u64 v = 0; get(o, key_of(s), &v, 8); return v; }
static double get_d(id o, SEL s) { double v = 0; get(o, key_of(s), &v, 8); return v; }
static float get_f(id o, SEL s) { return (float)get_d(o, s); }
static void set_u(id o, SEL s, u64 v) { put(o, key_of(s), &v, 8, 0); }
static void set_I(id o, SEL s, uint32_t v) { u64 w = v; put(o, key_of(s), &w, 8, 0); }
static void set_B(id o, SEL s, unsigned char v) { u64 w = v; put(o, key_of(s), &w, 8, 0); }
static void set_d(id o, SEL s, double v) { put(o, key_of(s), &v, 8, 0); }
static void set_f(id o, SEL s, float v) { double w = v; put(o, key_of(s), &w, 8, 0); }
static void set_o(id o, SEL s, id v) { put(o, key_of(s), &v, 8, 1); }

static Cls *class_for(const char *result)       /* the class of what a method declared to return this type gives */
{
    char name[128];
    if (result[0] != '@' || result[1] != '"') return 0;
    const char *from = result + 2;
    size_t n = strcspn(from, "\"");
    if (from[0] == '<') { from++; n = strcspn(from, ">"); snprintf(name, sizeof name, "AGX%.*s", (int)(n - 3), from + 3); }
    else snprintf(name, sizeof name, "%.*s", (int)n, from);
    return objc_getClass(name);
}
static id new_child(id parent, Cls *c, id descriptor)
{
    if (!c) return 0;
    id o = make(c);
    if (plain(parent)) {
        id device = strstr(parent->isa->name, "AGXDevice") == parent->isa->name ? parent : get_object(parent, "device");
        if (descriptor && plain(descriptor) && inherits(descriptor->isa, objc_getClass("NSObject"))) copy_props(descriptor, o);
        if (device) put_object(o, "device", device);
    }
    return o;
}
static Method *method_now(id o, SEL s) { return find(object_getClass(o), s); }
static id get_o(id o, SEL s)
{
    id v = 0;
    if (get(o, key_of(s), &v, 8)) return v;
    Cls *c = class_for(method_now(o, s)->result);
    size_t n = c ? strlen(c->name) : 0;
    if (n > 5 && (!strcmp(c->name + n - 5, "Array") || strstr(c->name, "AttachmentDescriptor")) && strcmp(c->name, "NSArray")) {
        v = make(c);
        put(o, key_of(s), &v, 8, 1);
        objc_release(v);
    }
    return v;
}
static id create(id o, SEL s, id first) { Method *m = method_now(o, s); return new_child(o, class_for(m->result), strchr(s, ':') && m->types[strcspn(m->types, ":") + 1] ? (strstr(s, "escriptor:") ? first : 0) : 0); }
static id create_auto(id o, SEL s, id first) { return objc_autorelease(create(o, s, first)); }
static id factory(id o, SEL s) { Cls *c = class_for(method_now(o, s)->result); (void)o; return objc_autorelease(make(c ? c : (Cls *)o)); }
static id item(id o, SEL s, u64 i)
{
    char key[40];
    snprintf(key, sizeof key, "#%lu", (unsigned long)i);
    id v = get_object(o, key);
    if (!v) { Cls *c = class_for(method_now(o, s)->result); if (c) { v = make(c); put_object(o, key, v); objc_release(v); } }
    return v;
}
static void set_item(id o, SEL s, id v, u64 i) { char key[40]; (void)s; snprintf(key, sizeof key, "#%lu", (unsigned long)i); put_object(o, key, v); }

/* ---- Foundation ---- */
typedef struct { char *bytes; size_t n; } Text;
static Cls *k_string, *k_array, *k_dictionary, *k_number, *k_data, *k_url, *k_error;
static id placeholder;
static id string_n(const void *bytes, size_t n)
{
    const unsigned char *b = bytes;
    int ascii = n <= 7;
    for (size_t i = 0; ascii && i < n; i++) ascii = b[i] && b[i] < 128;
    if (ascii) { u64 v = 1ULL << 63 | (u64)n << 56; memcpy(&v, b, n); return (id)v; }
    id o = make(k_string);
    o->p = malloc(n + 1);
    memcpy(o->p, bytes, n);
    ((char *)o->p)[n] = 0;
    o->a = n;
    return o;
}
static id string_c(const char *s) { return objc_autorelease(string_n(s, strlen(s))); }
static void free_p(id o) { free(o->p); o->p = 0; }
static size_t text_n(id o) { return TAGGED(o) ? (u64)o >> 56 & 15 : o->a; }
static const char *text(id o)
{
    if (!o) return "";
    if (!TAGGED(o)) return o->p;
    static __thread char ring[16][16]; static __thread int at;
    char *b = ring[at++ & 15];
    u64 v = (u64)o;
    memset(b, 0, 16);
    memcpy(b, &v, text_n(o));
    return b;
}
static id s_alloc(id c, SEL s) { (void)c, (void)s; return placeholder; }
static id s_init(id o, SEL s, const void *b, u64 n, u64 enc) { (void)s, (void)enc; objc_release(o); return string_n(b, n); }
static id s_with(id c, SEL s, const char *b) { (void)c, (void)s; return string_c(b); }
static const char *s_utf8(id o, SEL s) { (void)s; return text(o); }
static u64 s_bytes(id o, SEL s, u64 enc) { (void)s, (void)enc; return text_n(o); }
static u64 s_length(id o, SEL s) { u64 n = 0; (void)s; for (size_t i = 0; i < text_n(o); i++) n += (text(o)[i] & 0xC0) != 0x80; return n; }
static int same(id a, id b)
{
    if (a == b) return 1;
    if (!a || !b || !inherits(object_getClass(a), objc_getClass("NSString")) || !inherits(object_getClass(b), objc_getClass("NSString"))) return 0;
    return text_n(a) == text_n(b) && !memcmp(text(a), text(b), text_n(a));
}
static id number(const char *code, double d, u64 u) { id o = make(k_number); o->t[0] = d; o->a = u; o->p = (void *)code; return o; }
static id n_double(id o, SEL s, double d) { (void)s; objc_release(o); return number("d", d, (u64)(int64_t)d); }
static id n_long(id o, SEL s, int64_t v) { (void)s; objc_release(o); return number("q", (double)v, (u64)v); }
static id n_bool(id o, SEL s, char v) { (void)s; objc_release(o); return number("c", v, v); }
static id n_with_u(id c, SEL s, u64 v) { (void)c, (void)s; return objc_autorelease(number("Q", (double)v, v)); }
static id n_with_d(id c, SEL s, double v) { (void)c, (void)s; return objc_autorelease(number("d", v, (u64)v)); }
static id n_with_b(id c, SEL s, char v) { (void)c, (void)s; return objc_autorelease(number("c", v, v)); }
static double n_get_d(id o, SEL s) { (void)s; return o->t[0]; }
static u64 n_get_u(id o, SEL s) { (void)s; return o->a; }
static const char *n_type(id o, SEL s) { (void)s; return o->p; }
static id array_n(id const *items, u64 n)
{
    id o = make(k_array);
    id *copy = malloc(sizeof *copy * (n + 1));
    for (u64 i = 0; i < n; i++) copy[i] = objc_retain(items[i]);
    o->p = copy, o->a = n;
    return o;
}
static void a_free(id o) { for (u64 i = 0; i < o->a; i++) objc_release(((id *)o->p)[i]); free(o->p); if (o->q) { for (u64 i = 0; i < o->a; i++) objc_release(((id *)o->q)[i]); free(o->q); } }
static id a_init(id o, SEL s, id const *items, u64 n) { (void)s; objc_release(o); return array_n(items, n); }
static id a_with(id c, SEL s, id const *items, u64 n) { (void)c, (void)s; return objc_autorelease(array_n(items, n)); }
static u64 a_count(id o, SEL s) { (void)s; return o->a; }
static id a_at(id o, SEL s, u64 i) { (void)s; if (i >= o->a) { offence("array index %lu of %lu", (unsigned long)i, (unsigned long)o->a); return 0; } return ((id *)o->p)[i]; }
static id d_make(id const *values, id const *keys, u64 n)
{
    id o = make(k_dictionary);
    id *k = malloc(8 * (n + 1)), *v = malloc(8 * (n + 1));
    for (u64 i = 0; i < n; i++) k[i] = objc_retain(keys[i]), v[i] = objc_retain(values[i]);
    o->p = v, o->q = k, o->a = n;
    return o;
}
static id d_init(id o, SEL s, id const *values, id const *keys, u64 n) { (void)s; objc_release(o); return d_make(values, keys, n); }
static id d_with(id c, SEL s, id const *values, id const *keys, u64 n) { (void)c, (void)s; return objc_autorelease(d_make(values, keys, n)); }
static id d_get(id o, SEL s, id key) { (void)s; for (u64 i = 0; i < o->a; i++) if (same(((id *)o->q)[i], key)) return ((id *)o->p)[i]; return 0; }
static id d_keys(id o, SEL s) { (void)s; return objc_autorelease(array_n(o->q, o->a)); }
static id data_n(const void *b, u64 n) { id o = make(k_data); o->p = malloc(n + 1); memcpy(o->p, b, n); o->a = n; return o; }
static id da_init(id o, SEL s, const void *b, u64 n) { (void)s; objc_release(o); return data_n(b, n); }
static id da_with(id c, SEL s, const void *b, u64 n) { (void)c, (void)s; return objc_autorelease(data_n(b, n)); }
static void *da_bytes(id o, SEL s) { (void)s; return o->p; }
static u64 da_length(id o, SEL s) { (void)s; return o->a; }
static id u_with(id c, SEL s, id path) { (void)c, (void)s; id o = make(k_url); put_object(o, "path", path); return objc_autorelease(o); }
static id u_init(id o, SEL s, id path) { (void)s; put_object(o, "path", path); return o; }
static id error_make(const char *domain, int64_t code, const char *why)
{
    id o = make(k_error), d = string_n(domain, strlen(domain)), t = string_n(why, strlen(why));
    put_object(o, "domain", d), put_object(o, "localizedDescription", t), put_int(o, "code", (u64)code);
    objc_release(d), objc_release(t);
    return objc_autorelease(o);
}
static id o_alloc(id c, SEL s) { (void)s; return make((Cls *)c); }
static id o_new(id c, SEL s) { (void)s; return (id)send0((id)send0(c, "alloc"), "init"); }
static id o_self(id o, SEL s) { (void)s; return o; }
static id o_class(id o, SEL s) { (void)s; return (id)(object_getClass(o)->meta ? (Cls *)o : object_getClass(o)); }
static id o_description(id o, SEL s) { char b[200]; (void)s; snprintf(b, sizeof b, "<%s: %p>", class_getName(object_getClass(o)), (void *)o); return string_c(b); }
static u64 o_hash(id o, SEL s) { (void)s; return (u64)o >> 4; }
static char o_equal(id o, SEL s, id other) { (void)s; return same(o, other); }
static char o_responds(id o, SEL s, SEL what) { (void)s; return find(object_getClass(o), what) != 0; }
static char o_conforms(id o, SEL s, Protocol *p) { (void)s; for (Cls *c = object_getClass(o); c; c = c->super) for (int i = 0; i < c->nprotocols; i++) if (adopts(c->protocols[i], p)) return 1; return 0; }
static char o_kind(id o, SEL s, Cls *c) { (void)s; return inherits(object_getClass(o), c); }
static id o_copy(id o, SEL s) { (void)s; if (!plain(o)) return o; id c = make(o->isa); copy_props(o, c); return c; }
static id o_retain(id o, SEL s) { (void)s; return objc_retain(o); }
static void o_release(id o, SEL s) { (void)s; objc_release(o); }
static id o_autorelease(id o, SEL s) { (void)s; return objc_autorelease(o); }
static u64 o_count(id o, SEL s) { (void)s; return plain(o) ? HEAD(o)->count : ~0ULL; }
static id signature_of(Method *m) { if (!m) return 0; id o = make(objc_getClass("NSMethodSignature")); o->p = strdup(m->types); return objc_autorelease(o); }
static id o_signature(id o, SEL s, SEL what) { (void)s; return signature_of(find(object_getClass(o), what)); }
static int type_end(const char *t, int i)
{
    while (strchr("rnNoORV^", t[i]) && t[i]) i++;
    if (t[i] == '{') { int d = 0; do { d += (t[i] == '{') - (t[i] == '}'); i++; } while (d); return i; }
    return t[i] == '@' && t[i + 1] == '?' ? i + 2 : i + 1;
}
static const char *sig_type(id o, int k)
{
    const char *t = o->p;
    int i = 0;
    for (;; k--) {
        int e = type_end(t, i);
        if (!k) { static __thread char ring[16][160]; static __thread int at; char *b = ring[at++ & 15]; snprintf(b, 160, "%.*s", e - i, t + i); return b; }
        i = e;
        while (t[i] >= '0' && t[i] <= '9') i++;
        if (!t[i]) return 0;
    }
}
static u64 sig_count(id o, SEL s) { u64 n = 0; (void)s; while (sig_type(o, (int)n + 1)) n++; return n; }
static const char *sig_result(id o, SEL s) { (void)s; return sig_type(o, 0); }
static const char *sig_argument(id o, SEL s, u64 i) { (void)s; return sig_type(o, (int)i + 1); }

/* a wrapper without methods of its own, as GPU capture makes them: it forwards by target, or by signature only */
static id w_target(id o, SEL s, SEL what) { (void)s; return what && find(object_getClass(o->x), what) ? o->x : 0; }
static char w_responds(id o, SEL s, SEL what) { (void)s; return find(object_getClass(o), what) || find(object_getClass(o->x), what); }
static char w_conforms(id o, SEL s, Protocol *p) { return o_conforms(o->x, s, p); }
static id w_signature(id o, SEL s, SEL what) { (void)s; return signature_of(find(object_getClass(o->x), what)); }
static void w_free(id o) { objc_release(o->x); }
id fake_wrap(id inner, const char *name) { id o = make(objc_getClass(name)); o->x = objc_retain(inner); return o; }

/* what arrived: the class FakeEcho writes its arguments down, the tests compare */
static char echo_text[1024];
const char *fake_echo(void) { return echo_text; }
static void ec_free(id o) { (void)o; objc_autorelease(string_n("what a dealloc leaves to the pool", 33)); }
static void ec_mix(id o, SEL s, u64 a, int64_t b, uint32_t c, int d, unsigned short e, unsigned char f, short g, signed char h, float i, double j, float k)
{ (void)o, (void)s; sprintf(echo_text, "%lu %ld %u %d %u %u %d %d %.9g %.17g %.9g", (unsigned long)a, (long)b, c, d, e, f, g, h, i, j, k); }
static void ec_copy(id o, SEL s, id a, u64 b, u64 c, T_QQQ d, T_QQQ e, id f, u64 g, u64 h, T_QQQ i)
{ (void)o, (void)s; sprintf(echo_text, "%d %lu %lu %lu,%lu,%lu %lu,%lu,%lu %d %lu %lu %lu,%lu,%lu", a == o, b, c, d.v[0], d.v[1], d.v[2], e.v[0], e.v[1], e.v[2], f == 0, g, h, i.v[0], i.v[1], i.v[2]); }
static void ec_structs(id o, SEL s, T_dddd a, T_ff b, T_CCCC c, T_Q6 d, T_QQ e, T_d6 f, T_Q1 g, T_QQQQ h, T_dd i)
{ (void)o, (void)s; sprintf(echo_text, "%g,%g,%g,%g %g,%g %d,%d,%d,%d %lu,%lu,%lu,%lu,%lu,%lu %lu,%lu %g,%g,%g,%g,%g,%g %lu %lu,%lu,%lu,%lu %g,%g", a.v[0], a.v[1], a.v[2], a.v[3], b.v[0], b.v[1],
  c.v[0], c.v[1], c.v[2], c.v[3], d.v[0], d.v[1], d.v[2], d.v[3], d.v[4], d.v[5], e.v[0], e.v[1], f.v[0], f.v[1], f.v[2], f.v[3], f.v[4], f.v[5], g.v[0], h.v[0], h.v[1], h.v[2], h.v[3], i.v[0], i.v[1]); }
static void ec_arrays(id o, SEL s, id const *a, u64 const *b, float const *c, T_QQQQ const *d, T_QQ e)
{ (void)o, (void)s; sprintf(echo_text, "%d %d %lu,%lu %g,%g %lu,%lu %lu,%lu", a[0] == o, a[1] == 0, b[0], b[1], c[0], c[1], d[0].v[3], d[1].v[0], e.v[0], e.v[1]); }
static void ec_bytes(id o, SEL s, const void *a, u64 n, void *out) { (void)o, (void)s; snprintf(echo_text, 1024, "%.*s", (int)n, (const char *)a); if (out) memcpy(out, a, n); }
static char ec_out(id o, SEL s, id *out, SEL name, Cls *k) { (void)s; if (out) *out = objc_autorelease(objc_retain(o)); sprintf(echo_text, "%s %s", name, k->name); return out != 0; }
static signed char ec_many(id o, SEL s, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f, u64 g, u64 h, u64 i, u64 j, u64 k, char l)
{ (void)o, (void)s; sprintf(echo_text, "%lu %d", a + 10 * b + 100 * c + 1000 * d + 10000 * e + 100000 * f + 1000000 * g + 10000000 * h + 100000000 * i + 1000000000 * j + 10000000000 * k, l); return l; }

#include "fakemetal.h"
#include "fakegraphics.h"

/* ---- tables ---- */
typedef struct { const char *owner, *sel; void *imp; } Native;
static Native natives[] = {
    {"NSObject", "+alloc", o_alloc}, {"NSObject", "+new", o_new}, {"NSObject", "-init", o_self}, {"NSObject", "-class", o_class}, {"NSObject", "+class", o_class},
    {"NSObject", "-description", o_description}, {"NSObject", "-debugDescription", o_description}, {"NSObject", "-hash", o_hash}, {"NSObject", "-isEqual:", o_equal},
    {"NSObject", "-respondsToSelector:", o_responds}, {"NSObject", "-conformsToProtocol:", o_conforms}, {"NSObject", "-isKindOfClass:", o_kind},
    {"NSObject", "-copy", o_copy}, {"NSObject", "-self", o_self}, {"NSObject", "-retain", o_retain}, {"NSObject", "-release", o_release},
    {"NSObject", "-autorelease", o_autorelease}, {"NSObject", "-retainCount", o_count}, {"NSObject", "-methodSignatureForSelector:", o_signature},
    {"NSString", "+alloc", s_alloc}, {"NSString", "-initWithBytes:length:encoding:", s_init}, {"NSString", "+stringWithUTF8String:", s_with},
    {"NSString", "-UTF8String", s_utf8}, {"NSString", "-lengthOfBytesUsingEncoding:", s_bytes}, {"NSString", "-length", s_length},
    {"NSNumber", "-initWithDouble:", n_double}, {"NSNumber", "-initWithLongLong:", n_long}, {"NSNumber", "-initWithBool:", n_bool},
    {"NSNumber", "+numberWithUnsignedLongLong:", n_with_u}, {"NSNumber", "+numberWithLongLong:", n_with_u}, {"NSNumber", "+numberWithDouble:", n_with_d},
    {"NSNumber", "+numberWithBool:", n_with_b}, {"NSNumber", "-doubleValue", n_get_d}, {"NSNumber", "-longLongValue", n_get_u},
    {"NSNumber", "-unsignedLongLongValue", n_get_u}, {"NSNumber", "-boolValue", n_get_u}, {"NSNumber", "-objCType", n_type},
    {"NSArray", "-initWithObjects:count:", a_init}, {"NSArray", "+arrayWithObjects:count:", a_with}, {"NSArray", "-count", a_count}, {"NSArray", "-objectAtIndex:", a_at},
    {"NSArray", "-objectAtIndexedSubscript:", a_at}, {"NSDictionary", "-initWithObjects:forKeys:count:", d_init}, {"NSDictionary", "+dictionaryWithObjects:forKeys:count:", d_with},
    {"NSDictionary", "-objectForKey:", d_get}, {"NSDictionary", "-allKeys", d_keys}, {"NSDictionary", "-count", a_count},
    {"NSData", "-initWithBytes:length:", da_init}, {"NSData", "+dataWithBytes:length:", da_with}, {"NSData", "-bytes", da_bytes}, {"NSData", "-length", da_length},
    {"NSURL", "+fileURLWithPath:", u_with}, {"NSURL", "-initFileURLWithPath:", u_init},
    {"NSMethodSignature", "-numberOfArguments", sig_count}, {"NSMethodSignature", "-methodReturnType", sig_result}, {"NSMethodSignature", "-getArgumentTypeAtIndex:", sig_argument},
    {"CaptureMTLDevice", "-forwardingTargetForSelector:", w_target}, {"CaptureMTLDevice", "-respondsToSelector:", w_responds}, {"CaptureMTLDevice", "-conformsToProtocol:", w_conforms},
    {"FakeProxy", "-methodSignatureForSelector:", w_signature}, {"FakeProxy", "-forwardInvocation:", nothing},
    {"FakeEcho", "-a:b:c:d:e:f:g:h:i:j:k:", ec_mix}, {"FakeEcho", "-copy:slice:level:origin:size:to:slice:level:origin:", ec_copy},
    {"FakeEcho", "-structs:b:c:d:e:f:g:h:i:", ec_structs}, {"FakeEcho", "-arrays:b:c:d:range:", ec_arrays}, {"FakeEcho", "-bytes:length:out:", ec_bytes},
    {"FakeEcho", "-out:name:kind:", ec_out}, {"FakeEcho", "-m:a:n:y:w:o:r:d:s:i:n:flag:", ec_many},
    GRAPHICS_NATIVES METAL_NATIVES
    {0, 0, 0}
};
static void add_method(Cls *c, const char *sel, const char *types, const char *extended, const char *result, int own, void *imp)
{
    SEL s = S(sel);
    for (int i = 0; i < c->n; i++) if (c->methods[i].sel == s) return;
    if (c->n == c->cap) c->methods = realloc(c->methods, (c->cap = c->cap ? 2 * c->cap : 8) * sizeof *c->methods);
    if (placeholder) memset(cache, 0, sizeof cache);        /* a category, after fake_ready: the methods may have moved */
    c->methods[c->n++] = (Method){ s, (IMP)imp, strdup(types), strdup(extended), strdup(result), own };
}
static void *native(const char *owner, const char *sel)
{
    for (Native *n = natives; n->owner; n++) if (!strcmp(n->owner, owner) && !strcmp(n->sel, sel)) return n->imp;
    return 0;
}
void fake_class(const char *name, const char *parent)
{
    Cls *c = objc_getClass(name);
    if (!c) c = new_class(name, parent && parent[0] ? parent : 0);
    if (!strcmp(name, "NSTaggedPointerString")) tagged_class = c;
}
void fake_protocol(const char *name)
{
    Protocol *p = calloc(1, sizeof *p);
    p->name = strdup(name);
    p->isa = objc_getClass("NSObject");
    protocols[nprotocols++] = p;
}
void fake_protocol_parent(const char *name, const char *parent)
{
    Protocol *p = objc_getProtocol(name), *q = objc_getProtocol(parent);
    if (p && q && p->nparents < 8) p->parents[p->nparents++] = q;
}
void fake_adopt(const char *name, const char *protocol)
{
    Cls *c = objc_getClass(name);
    Protocol *p = objc_getProtocol(protocol);
    if (!c || !p) return;
    if (c->nprotocols < 8) c->protocols[c->nprotocols++] = p;
    if (c->isa->nprotocols < 8) c->isa->protocols[c->isa->nprotocols++] = p;
}
void fake_protocol_method(const char *name, const char *sel, const char *types, const char *extended, int optional)
{
    Protocol *p = objc_getProtocol(name);
    p->methods = realloc(p->methods, (p->n + 1) * sizeof *p->methods);
    p->flags = realloc(p->flags, p->n + 1);
    p->flags[p->n] = (char)(optional | (sel[0] == '+') << 1);
    p->methods[p->n++] = (Method){ S(sel + 1), 0, strdup(types), strdup(extended), 0, 0 };
}
/* shape: how a method without a native implementation behaves; see fakeobjc.py */
void fake_method(const char *name, const char *owner, const char *sel, const char *types, const char *extended, const char *result, int own, const char *shape)
{
    Cls *c = objc_getClass(name);
    void *imp = native(name, sel);
    if (!imp) imp = native(owner, sel);
    if (!imp) {
        static const struct { const char *shape; void *imp; } table[] = {
            {"get u", get_u}, {"self", o_self}, {"forward", forward}, {"get d", get_d}, {"get f", get_f}, {"get @", get_o}, {"set u", set_u}, {"set I", set_I}, {"set B", set_B}, {"set d", set_d},
            {"set f", set_f}, {"set @", set_o}, {"create", create}, {"create auto", create_auto}, {"factory", factory}, {"item", item}, {"set item", set_item},
#define X(name, type, n) {"get " #name, get_##name}, {"set " #name, set_##name},
            STRUCTS(X)
#undef X
            {0, 0} };
        for (int i = 0; table[i].shape; i++) if (!strcmp(table[i].shape, shape)) imp = table[i].imp;
    }
    add_method(sel[0] == '+' ? c->isa : c, sel + 1, types, extended, result, own, imp ? imp : (void *)nothing);
}
void fake_dealloc(const char *name, const char *what)
{
    Cls *c = objc_getClass(name);
    c->dealloc = !strcmp(what, "text") ? free_p : !strcmp(what, "array") ? a_free : !strcmp(what, "wrapper") ? w_free : !strcmp(what, "echo") ? ec_free : graphics_dealloc(what);
}
void fake_ready(void)
{
    block_stack.name = block_malloc.name = block_global.name = "__NSMallocBlock__";
    block_stack_storage.name = "__NSStackBlock__";
    block_malloc.isa = block_stack_storage.isa = objc_getClass("NSObject");
    k_string = objc_getClass("__NSCFString");
    k_array = objc_getClass("__NSArrayI"), k_dictionary = objc_getClass("__NSDictionaryI"), k_number = objc_getClass("__NSCFNumber");
    k_data = objc_getClass("NSConcreteData"), k_url = objc_getClass("NSURL"), k_error = objc_getClass("NSError");
    placeholder = make(objc_getClass("NSPlaceholderString"));
    HEAD(placeholder)->count = 1 << 30;
    metal_ready();
}
void *fake_test_make(const char *name) { return make(objc_getClass(name)); }

/* ---- what the tests read ---- */
void fake_counts(u64 *out)      /* live objects, made, sends, offences, autoreleased without pool, open pools, blocks */
{
    lock();
    u64 v[] = { lives, made, sends, errors, nopool, pools_open, blocks_live };
    memcpy(out, v, sizeof v);
    unlock();
}
u64 fake_sent(const char *sel) { SEL s = S(sel); return ((Sel *)(s - __builtin_offsetof(Sel, name)))->count; }
const char *fake_log(void) { return logtext; }
void fake_forgive(void) { errors = 0; loglen = 0; logtext[0] = 0; nopool = 0; }
void fake_quarantine(unsigned n)
{
    lock();
    for (unsigned i = 0; i < quarantine_size; i++) { free(quarantine[i]); quarantine[i] = 0; }
    quarantine_size = n < MAXQUARANTINE ? n : MAXQUARANTINE;
    quarantine_at = 0;
    unlock();
}
int64_t fake_count_of(id o) { return plain(o) ? HEAD(o)->count : -1; }
u64 fake_serial(void) { return serials; }
size_t fake_leaks(u64 since, char *out, size_t n)       /* live objects made after a moment: class, maker, count */
{
    size_t at = 0, found = 0;
    lock();
    for (Head *h = live.next; h != &live; h = h->next) if (h->serial > since) {
        found++;
        if (at + 200 < n) at += snprintf(out + at, n - at, "%s made by %s, count %ld\n", ((id)(h + 1))->isa->name, h->creator ? h->creator : "?", (long)h->count);
    }
    unlock();
    if (n) out[at] = 0;
    return found;
}
