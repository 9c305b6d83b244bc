/* The part of fakemac that ctypes cannot do: exported data symbols, and one objc_msgSend address for every signature.
 *
 * Compiled on the fly by fakemac.py (cc -shared -fPIC). objc_msgSend asks the Python side which function serves
 * (receiver, selector) and jumps there with all argument registers as they were, as Apple's does.
 */
#include <stdint.h>

/* Data symbols. Contents are never read by the stand-ins, only their addresses, except where a value is given. */
uint64_t kCFTypeDictionaryKeyCallBacks[6];
uint64_t kCFCopyStringDictionaryKeyCallBacks[6];
uint64_t kCFTypeDictionaryValueCallBacks[5];
uint64_t kCFTypeArrayCallBacks[5];
uint64_t _NSConcreteStackBlock[32];
uint64_t _NSConcreteGlobalBlock[32];
void *kCFBooleanTrue;
void *kCFBooleanFalse;
void *kCFAllocatorDefault;
void *kCFAllocatorNull;
uint32_t mach_task_self_;
uint32_t kIOMasterPortDefault;
uint32_t kIOMainPortDefault;
uint64_t vm_page_size;
uint64_t vm_kernel_page_size;

void *(*fakemac_resolver)(void *receiver, void *selector);

int64_t fakemac_zero(void) { return 0; }

#if defined(__APPLE__)
#define NAME(x) "_" #x
#else
#define NAME(x) #x
#endif

void fakemac_msgSend(void);

#if defined(__x86_64__)
#if defined(__APPLE__)
#define RESOLVER "_fakemac_resolver(%rip)"
#else
#define RESOLVER "fakemac_resolver@GOTPCREL(%rip)"
#endif
__asm__(
    ".text\n.globl " NAME(fakemac_msgSend) "\n" NAME(fakemac_msgSend) ":\n"
    "  push %rbp\n  mov %rsp, %rbp\n  sub $0xd0, %rsp\n"
    "  mov %rdi, 0x00(%rsp)\n  mov %rsi, 0x08(%rsp)\n  mov %rdx, 0x10(%rsp)\n  mov %rcx, 0x18(%rsp)\n"
    "  mov %r8, 0x20(%rsp)\n  mov %r9, 0x28(%rsp)\n  mov %rax, 0x30(%rsp)\n"
    "  movups %xmm0, 0x40(%rsp)\n  movups %xmm1, 0x50(%rsp)\n  movups %xmm2, 0x60(%rsp)\n  movups %xmm3, 0x70(%rsp)\n"
    "  movups %xmm4, 0x80(%rsp)\n  movups %xmm5, 0x90(%rsp)\n  movups %xmm6, 0xa0(%rsp)\n  movups %xmm7, 0xb0(%rsp)\n"
#if defined(__APPLE__)
    "  call *" RESOLVER "\n"
#else
    "  mov " RESOLVER ", %rax\n  call *(%rax)\n"
#endif
    "  mov %rax, %r11\n"
    "  mov 0x00(%rsp), %rdi\n  mov 0x08(%rsp), %rsi\n  mov 0x10(%rsp), %rdx\n  mov 0x18(%rsp), %rcx\n"
    "  mov 0x20(%rsp), %r8\n  mov 0x28(%rsp), %r9\n  mov 0x30(%rsp), %rax\n"
    "  movups 0x40(%rsp), %xmm0\n  movups 0x50(%rsp), %xmm1\n  movups 0x60(%rsp), %xmm2\n  movups 0x70(%rsp), %xmm3\n"
    "  movups 0x80(%rsp), %xmm4\n  movups 0x90(%rsp), %xmm5\n  movups 0xa0(%rsp), %xmm6\n  movups 0xb0(%rsp), %xmm7\n"
    "  leave\n  jmp *%r11\n");
#elif defined(__aarch64__)
__asm__(
    ".text\n.globl " NAME(fakemac_msgSend) "\n.p2align 2\n" NAME(fakemac_msgSend) ":\n"
    "  stp x29, x30, [sp, #-16]!\n  mov x29, sp\n  sub sp, sp, #208\n"
    "  stp x0, x1, [sp, #0]\n  stp x2, x3, [sp, #16]\n  stp x4, x5, [sp, #32]\n  stp x6, x7, [sp, #48]\n  str x8, [sp, #64]\n"
    "  stp q0, q1, [sp, #80]\n  stp q2, q3, [sp, #112]\n  stp q4, q5, [sp, #144]\n  stp q6, q7, [sp, #176]\n"
#if defined(__APPLE__)
    "  adrp x9, _fakemac_resolver@PAGE\n  ldr x9, [x9, _fakemac_resolver@PAGEOFF]\n"
#else
    "  adrp x9, :got:fakemac_resolver\n  ldr x9, [x9, :got_lo12:fakemac_resolver]\n  ldr x9, [x9]\n"
#endif
    "  blr x9\n  mov x16, x0\n"
    "  ldp x0, x1, [sp, #0]\n  ldp x2, x3, [sp, #16]\n  ldp x4, x5, [sp, #32]\n  ldp x6, x7, [sp, #48]\n  ldr x8, [sp, #64]\n"
    "  ldp q0, q1, [sp, #80]\n  ldp q2, q3, [sp, #112]\n  ldp q4, q5, [sp, #144]\n  ldp q6, q7, [sp, #176]\n"
    "  mov sp, x29\n  ldp x29, x30, [sp], #16\n  br x16\n");
#else
#error "no objc_msgSend trampoline for this processor"
#endif
