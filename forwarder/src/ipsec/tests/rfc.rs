//! Published vectors, octet by octet.

use super::crypto::{CipherKey, EspTransform, Number};
use super::mac::MacKey;
use super::*;

/// A published ESP packet: key with salt, additional data (SPI and sequence number, of 32 or 64 bits), IV,
/// what is encrypted, and the result with ICV.
struct Packet {
    aead: Aead,
    key: &'static str,
    aad: &'static str,
    iv: &'static str,
    plain: &'static str,
    protected: &'static str,
}

/// Test cases of draft-mcgrew-gcm-test-01, section 4, with keys of 128 and 256 bits: key with salt,
/// additional data, IV, plaintext, result.
const DRAFT_MCGREW_GCM_TEST: [[&str; 5]; 8] = [
    [
        "4c80cdefbb5d10da906ac73c3613a634 2e443b68",
        "000043218765432100000000",
        "4956ed7e3b244cfe",
        "45000048699a000080114db7c0a80102c0a801010a9bf15638d30100000100000000000004
             5f736970045f756470037369700963796265726369747902646b000021000101020201",
        "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34cfa2436f14
             a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce61bc17d768fd9732
             459018148f6cbe722fd04796562dfdb4",
    ],
    [
        "feffe9928665731c6d6a8f9467308308 cafebabe",
        "0000a5f80000000a",
        "facedbaddecaf888",
        "4500003e698f000080114dccc0a80102c0a801010a980035002a2343b2d001000001000000
             000000037369700963796265726369747902646b00000100010001",
        "deb22cd9b07c72c16e3a65beeb8df304a5a5897d33ae530f1ba76d5d114d2a5c3de81827c1
             0e9a4f51330d0eec416642cfbb85a5b47e48a4ec3b9ba95d918bd1
             83b70d3aa8bc6ee4c309e9d85a41ad4a",
    ],
    [
        "abbccddef00112233445566778899aababbccddef00112233445566778899aab 11223344",
        "4a2cbfe300000002",
        "0102030405060708",
        "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee0000000007002400020
             bf0000020405b40101040201020201",
        "ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763748a637985
             771d347f0545659f14e99def842d8e b335f4eecfdbf831824b4c4915956c96",
    ],
    [
        "00000000000000000000000000000000 00000000",
        "0000000000000001",
        "0000000000000000",
        "4500003c99c500008001cb7a40679318010101010800075c02004400616263646566676869
             6a6b6c6d6e6f707172737475767761626364656667686901020201",
        "4688daf2f973a392732909c331d56d60f694abaa414b5e7ff5fdcdfff5e9a2844564764927
             19ffb64de7d9dca1e1d894bc3bd57873ed4d181d19d4d5c8c18af3
             f821d496eeb096e98ad2b69e4799c71d",
    ],
    [
        "3de09874b388e6491988d0c3607eae1f 57690e43",
        "42f67e3f1010101010101010",
        "4e280000a2fca1a3",
        "4500001c42a200008001441f406793b6e00000020a00f5ff01020201",
        "fba2ca845e5df9f0f22c3e6e86dd831e1fc65792cd1af9130e1379ed
             369f071f35e034be95f112e4e7d05d35",
    ],
    [
        "abbccddef00112233445566778899aababbccddef00112233445566778899aab 73616c74",
        "17405e67156f3126dd0db99b",
        "616e640169766563",
        "45080028732c00004006e9f90a0106120a01038f06b88023dd6bafbecb71260250101f646d
             540001",
        "f2d69ecdbd5a0d5b8d5ef38bad4da58d1f278fde98ef67549d524a3018d9a57ff4d3a31ce6
             73119e 451626c2415771e3b7eebca614c89b35",
    ],
    [
        "7d773d00c144c525ac619d18c84a3f47 d9664267",
        "335467aeffffffff",
        "43457e9182443bc6",
        "01020201",
        "437f866b cb3f699fe9b0822bac961c4504bef270",
    ],
    [
        "6c6567616c697a656d6172696a75616e61616e64646f69746265666f72656961 7475726e",
        "796b6963ffffffffffffffff",
        "333021696765746d",
        "45000030da3a00008001df3bc0a80005c0a800010800c6cd02000700616263646566676869
             6a6b6c6d6e6f707172737401020201",
        "f97ab2aa356d8edce17644ac8c78e25dd24dedbb29ebf1b64a274b39b49c3a864cd3d78ca4
             ae68a32b42458fb57dbe821dcc63b9 d0937ba2945f669368661a329fb4c053",
    ],
];

/// The test case of the same draft for GMAC.
const DRAFT_MCGREW_GMAC_TEST: Packet = Packet {
    aead: Aead::AesGmac,
    key: "4c80cdefbb5d10da906ac73c3613a634 22433c64",
    aad: "0000432100000007",
    iv: "0000000000000000",
    plain: "45000030da3a00008001df3bc0a80005c0a800010800c6cd0200070061626364656667
            68696a6b6c6d6e6f707172737401020201",
    protected: "45000030da3a00008001df3bc0a80005c0a800010800c6cd0200070061626364656667
            68696a6b6c6d6e6f707172737401020201 f2a9a836e155106aa8dcd618e4099aaa",
};

/// RFC 7634, appendix A.
const RFC_7634: Packet = Packet {
    aead: Aead::ChaCha20Poly1305,
    key: "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f a0a1a2a3",
    aad: "0102030400000005",
    iv: "1011121314151617",
    plain: "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10000736270809
        0a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f30313233
        3435363701020204",
    protected: "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614ee8099
        d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e6
        64da9165b82829f641e0 76aaa8266b7fb0f7b11b369907e1ad43",
};

#[test]
fn combined_algorithms_make_the_published_packets() {
    let gcm = DRAFT_MCGREW_GCM_TEST.map(|[key, aad, iv, plain, protected]| Packet {
        aead: Aead::AesGcm,
        key,
        aad,
        iv,
        plain,
        protected,
    });
    for packet in gcm.iter().chain([&DRAFT_MCGREW_GMAC_TEST, &RFC_7634]) {
        let (aad, iv) = (hex(packet.aad), hex(packet.iv));
        let spi = u32::from_be_bytes(aad[..4].try_into().unwrap());
        let is_extended = aad.len() == 12;
        let seq = aad[4..].iter().fold(0u64, |seq, &octet| seq << 8 | u64::from(octet));
        // The salt that makes the published IV of this number.
        let iv_number = u64::from_be_bytes(iv[..].try_into().unwrap());
        let seed = IvSeed::kernel_salt((seq ^ iv_number).to_be_bytes());
        let keys = EspKeys::Combined(packet.aead, Secret::new(hex(packet.key)));
        let transform = EspTransform::new(&keys, Some(&seed)).expect("keys");
        let number = Number { spi, seq, is_extended };
        let header = [&spi.to_be_bytes()[..], &(seq as u32).to_be_bytes()].concat();
        let before = [9, 9, 9, 9];
        let plain = [&before[..], &header, &[0; 8], &hex(packet.plain), &[0; 16]].concat();
        let protected = [&before[..], &header, &iv, &hex(packet.protected)].concat();
        let mut octets = plain.clone();
        transform.seal(&mut octets, number).expect("sealed");
        assert_eq!(octets, protected, "{}", packet.aad);
        transform.open(&mut octets, number).expect("opened");
        let end = octets.len() - 16;
        assert_eq!(octets[20..end], plain[20..end], "{}", packet.aad);
    }
}

/// Key (with nonce), IV, plaintext, ciphertext.
type CipherVector = (Cipher, &'static str, &'static str, Vec<u8>, &'static str);

#[test]
fn ciphers_make_the_published_octets() {
    let single = || b"Single block msg".to_vec();
    let ping = [
        hex("08000ebda70a00008e9c083db95b0700"),
        octets(8, 0x30),
        hex("0102030405060708090a0b0c0d0e0e01"),
    ];
    let vectors: [CipherVector; 7] = [
        // RFC 3602 §4, cases 1 and 2, and the payload of the packet of case 5.
        (
            Cipher::AesCbc,
            "06a9214036b8a15b512e03d534120006",
            "3dafba429d9eb430b422da802c9fac41",
            single(),
            "e353779c1079aeb82708942dbe77181a",
        ),
        (
            Cipher::AesCbc,
            "c286696d887c9aa0611bbb3e2025a45a",
            "562e17996d093d28ddb3ba695a2e6f58",
            octets(0, 32),
            "d296cd94c2cccf8a3a863028b5e1dc0a7586602d253cfff91b8266bea6d61ab1",
        ),
        (
            Cipher::AesCbc,
            "90d382b410eeba7ad938c46cec1a82bf",
            "e96e8c08ab465763fd098d45dd3ff893",
            ping.concat(),
            "f663c25d325c18c6a9453e194e120849a4870b66cc6b9965330013b4898dc856a4699e523a55db08
             0b59ec3a8e4b7e52775b07d1db34ed9c538ab50c551b874aa269add047ad2d5913ac19b7cfbad4a6",
        ),
        // RFC 3686 §6, cases 1, 2, 4 and 7.
        (
            Cipher::AesCtr,
            "ae6852f8121067cc4bf7a5765577f39e 00000030",
            "0000000000000000",
            single(),
            "e4095d4fb7a7b3792d6175a3261311b8",
        ),
        (
            Cipher::AesCtr,
            "7e24067817fae0d743d6ce1f32539163 006cb6db",
            "c0543b59da48d90b",
            octets(0, 32),
            "5104a106168a72d9790d41ee8edad388eb2e1efc46da57c8fce630df9141be28",
        ),
        (
            Cipher::AesCtr,
            "16af5b145fc9f579c175f93e3bfb0eed863d06ccfdb78515 00000048",
            "36733c147d6d93cb",
            single(),
            "4b55384fe259c9c84e7935a003cbe928",
        ),
        (
            Cipher::AesCtr,
            "776beff2851db06f4c8a0542c8696f6c6a81af1eec96b4d37fc1d689e6c1c104 00000060",
            "db5672c97aa8f0b2",
            single(),
            "145ad01dbf824ec7560863dc71e3e0c0",
        ),
    ];
    for (cipher, key, iv, plain, encrypted) in vectors {
        let transform = CipherKey::new(cipher, &Secret::new(hex(key)), None).expect("a key");
        let mut octets = plain.clone();
        transform.encrypt(&hex(iv), &mut octets).expect("encrypted");
        assert_eq!(octets, hex(encrypted), "{key}");
        transform.decrypt(&hex(iv), &mut octets).expect("decrypted");
        assert_eq!(octets, plain, "{key}");
    }
}

#[test]
fn hmac_makes_the_published_octets() {
    let data = b"Hi There";
    for (auth, key_len, tag) in [
        // RFC 2202 §3, case 1; RFC 4231 §4.2; RFC 4868 §2.7.2.1, AUTH256-1, AUTH384-1 and AUTH512-1. Truncated.
        (Auth::HmacSha1_96, 20, "b617318655057264e28bc0b6"),
        (Auth::HmacSha256_128, 20, "b0344c61d8db38535ca8afceaf0bf12b"),
        (Auth::HmacSha384_192, 20, "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec6"),
        (
            Auth::HmacSha512_256,
            20,
            "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde",
        ),
        (Auth::HmacSha256_128, 32, "198a607eb44bfbc69903a0f1cf2bbdc5"),
        (Auth::HmacSha384_192, 48, "b6a8d5636f5c6a7224f9977dcf7ee6c7fb6d0c48cbdee973"),
        (
            Auth::HmacSha512_256,
            64,
            "637edc6e01dce7e6742a99451aae82df23da3e92439e590e43e761b33e910fb8",
        ),
    ] {
        let mac = MacKey::new(auth, &Secret::new(vec![0x0b; key_len])).expect("a key");
        let number = Number { spi: 0, seq: 0, is_extended: false };
        let mut icv = vec![0; auth.icv_len()];
        let mut context = mac.start();
        context.update(data);
        context.write(number, &mut icv).expect("an ICV");
        assert_eq!(icv, hex(tag), "{auth:?}");
        let mut context = mac.start();
        context.update(data);
        assert!(context.verify(number, &icv).is_ok());
    }
}
