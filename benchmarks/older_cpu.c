/* Answer CPUID for patched libraries like a processor without AVX-512, VNNI, bf16 and AMX.

   `older_cpu.py` replaces each CPUID instruction of ONNX Runtime by the invalid instruction 0F 0A,
   and preloads this library. The handler of the resulting SIGILL runs the real CPUID and clears
   the bits of the newer instructions. */

#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);

static void answer(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    if (code[0] != 0x0f || code[1] != 0x0a) {
        signal(SIGILL, SIG_DFL);
        return;
    }
    unsigned leaf = registers[REG_RAX], subleaf = registers[REG_RCX], a, b, c, d;
    __cpuid_count(leaf, subleaf, a, b, c, d);
    if (leaf == 7 && subleaf == 0) {
        b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
        c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
        d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);
    } else if (leaf == 7) {
        a = b = c = d = 0; /* AVX-VNNI, AVX512-BF16 and later instructions */
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

/* Prevents Python's faulthandler from replacing the handler of SIGILL. */
int sigaction(int number, const struct sigaction *action, struct sigaction *former)
{
    if (!real_sigaction)
        real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    return real_sigaction(number, number == SIGILL ? NULL : action, former);
}

__attribute__((constructor)) static void install(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    real_sigaction(SIGILL, &action, NULL);
}
