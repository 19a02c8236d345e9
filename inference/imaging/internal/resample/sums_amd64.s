#include "textflag.h"

// Half of the last bit that is kept: for eight numbers, and for those of the first
// three whose other halves are added to them at the end.
DATA half<>+0(SB)/4, $0x200000
DATA half<>+4(SB)/4, $0x200000
DATA half<>+8(SB)/4, $0x200000
DATA half<>+12(SB)/4, $0
DATA half<>+16(SB)/4, $0
DATA half<>+20(SB)/4, $0
DATA half<>+24(SB)/4, $0
DATA half<>+28(SB)/4, $0
GLOBL half<>(SB), RODATA|NOPTR, $32

// Where the second pixel of a pair goes.
DATA second<>+0(SB)/4, $3
DATA second<>+4(SB)/4, $4
DATA second<>+8(SB)/4, $5
DATA second<>+12(SB)/4, $7
DATA second<>+16(SB)/4, $7
DATA second<>+20(SB)/4, $7
DATA second<>+24(SB)/4, $7
DATA second<>+28(SB)/4, $7
GLOBL second<>(SB), RODATA|NOPTR, $32

// The order of four times eight bytes after they were packed within lanes.
DATA lanes<>+0(SB)/4, $0
DATA lanes<>+4(SB)/4, $4
DATA lanes<>+8(SB)/4, $1
DATA lanes<>+12(SB)/4, $5
DATA lanes<>+16(SB)/4, $2
DATA lanes<>+20(SB)/4, $6
DATA lanes<>+24(SB)/4, $3
DATA lanes<>+28(SB)/4, $7
GLOBL lanes<>(SB), RODATA|NOPTR, $32

// func pixelsAVX2(dst, src *uint8, at, k *int32, pairs, n int)
//
// Each of n output pixels is the sum of the 2·pairs input pixels from byte at[i] of
// src on, times the coefficients k[8·pairs·i:], in which those of two pixels are
// three, three and two zeros. It reads two bytes more than these pixels, and writes
// one byte behind the last output.
TEXT ·pixelsAVX2(SB), NOSPLIT, $0-48
	MOVQ    dst+0(FP), DI
	MOVQ    src+8(FP), SI
	MOVQ    at+16(FP), R8
	MOVQ    k+24(FP), R9
	MOVQ    pairs+32(FP), R10
	MOVQ    n+40(FP), R11
	VMOVDQU half<>(SB), Y14
	VMOVDQU second<>(SB), Y13

pixel:
	MOVLQSX (R8), AX
	ADDQ    SI, AX
	VMOVDQA Y14, Y0
	MOVQ    R10, CX

pair:
	VPMOVZXBD (AX), Y1
	VPMULLD   (R9), Y1, Y1
	VPADDD    Y1, Y0, Y0
	ADDQ      $6, AX
	ADDQ      $32, R9
	DECQ      CX
	JNZ       pair

	VPERMD    Y0, Y13, Y2
	VPADDD    X2, X0, X0
	VPSRAD    $22, X0, X0
	VPACKSSDW X0, X0, X0
	VPACKUSWB X0, X0, X0
	VMOVD     X0, (DI)
	ADDQ      $3, DI
	ADDQ      $4, R8
	DECQ      R11
	JNZ       pixel
	VZEROUPPER
	RET

// func bytesAVX2(dst, src *uint8, stride int, k *int32, taps, blocks int)
//
// Each of 32·blocks output bytes is the sum of the taps input bytes below one
// another, stride apart, times the coefficients k.
TEXT ·bytesAVX2(SB), NOSPLIT, $0-48
	MOVQ         dst+0(FP), DI
	MOVQ         src+8(FP), SI
	MOVQ         stride+16(FP), R8
	MOVQ         k+24(FP), R9
	MOVQ         taps+32(FP), R10
	MOVQ         blocks+40(FP), R11
	VPBROADCASTD half<>(SB), Y14
	VMOVDQU      lanes<>(SB), Y13

block:
	VMOVDQA Y14, Y0
	VMOVDQA Y14, Y1
	VMOVDQA Y14, Y2
	VMOVDQA Y14, Y3
	MOVQ    SI, R12
	XORQ    CX, CX

tap:
	VPBROADCASTD (R9)(CX*4), Y8
	VPMOVZXBD    (R12), Y4
	VPMOVZXBD    8(R12), Y5
	VPMOVZXBD    16(R12), Y6
	VPMOVZXBD    24(R12), Y7
	VPMULLD      Y8, Y4, Y4
	VPMULLD      Y8, Y5, Y5
	VPMULLD      Y8, Y6, Y6
	VPMULLD      Y8, Y7, Y7
	VPADDD       Y4, Y0, Y0
	VPADDD       Y5, Y1, Y1
	VPADDD       Y6, Y2, Y2
	VPADDD       Y7, Y3, Y3
	ADDQ         R8, R12
	INCQ         CX
	CMPQ         CX, R10
	JB           tap

	VPSRAD    $22, Y0, Y0
	VPSRAD    $22, Y1, Y1
	VPSRAD    $22, Y2, Y2
	VPSRAD    $22, Y3, Y3
	VPACKSSDW Y1, Y0, Y0
	VPACKSSDW Y3, Y2, Y2
	VPACKUSWB Y2, Y0, Y0
	VPERMD    Y0, Y13, Y0
	VMOVDQU   Y0, (DI)
	ADDQ      $32, DI
	ADDQ      $32, SI
	DECQ      R11
	JNZ       block
	VZEROUPPER
	RET
